from pathlib import Path

import pytest

from config.settings import Settings, load_settings, setting_names
from registry.store import Registry
from registry.testing import ManualClock, make_registry


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    found = load_settings(home=tmp_path / "home")
    found.paths.prepare()
    return found


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry(tmp_path: Path, clock: ManualClock) -> Registry:
    return make_registry(tmp_path, clock=clock)
