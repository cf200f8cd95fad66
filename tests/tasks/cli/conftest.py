from pathlib import Path

import pytest

from config.settings import Settings, load_settings, setting_names
from registry.schema import upgrade
from registry.store import Registry


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a command finds: a home of its own, and nothing of the caller's."""
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    found = load_settings()
    found.paths.prepare()
    return found


@pytest.fixture
def registry(settings: Settings) -> Registry:
    made = Registry(settings.database_url)
    upgrade(made)
    return made
