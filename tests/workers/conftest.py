from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, load_settings, setting_names
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job, make_checkpoint, make_registry
from workers.runner import TrainingRun, claim
from workers.testing import FakeChild

Start = Callable[..., TrainingRun]


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


@pytest.fixture
def start(registry: Registry, settings: Settings) -> Start:
    """A run of the one job there is, with a trainer that says what it is told to say."""
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
        add_queued_job(tx)

    def make(child: FakeChild, **options: Any) -> TrainingRun:
        claimed = claim(registry, settings=settings, holder="worker")
        assert claimed is not None
        common = {"registry": registry, "settings": settings, "actor": "worker", "start_child": child}
        seams = {"should_stop": lambda: False, "on_checkpoint": lambda: None}
        return TrainingRun(job=claimed.job, lease=claimed.lease, **{**common, **seams, **options})

    return make
