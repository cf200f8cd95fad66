"""Many requests, most of them wrong, through every door. `make fuzz CASES=5000` says how many."""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from celery import Celery
from hypothesis import HealthCheck, Phase, settings

import tasks.api
import tasks.door
import tasks.safety
import tasks.training
import workers.app
import workers.context
import workers.status
import workers.steering
from config.settings import setting_names
from registry.status_files import PartStatus
from tests.fuzz.house import House, Nobody, Wire, WriteWatch, check_everything
from workers.celery_settings import TASK_MODULES
from workers.context import Context
from workers.testing import FakeChild, finished

NUM_DOORS = 4
settings.register_profile(
    "fuzz",
    max_examples=max(1, int(os.environ.get("CASES", "400")) // NUM_DOORS),
    derandomize=True,  # the same cases everywhere; a failure prints the one to repeat
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),
)

Case = Callable[[], "Door"]


class Door:
    """One case: a fresh home, the wire to it, and the check at the end."""

    def __init__(self, house: House, *, context: Context, wire: Wire, watch: WriteWatch) -> None:
        house.restore(context)
        self.house, self.context, self.wire, self.watch = house, context, wire, watch
        wire.answers.clear()
        wire.crashes.clear()
        self._writes = watch.only(house.root / "case" / "home")

    def __enter__(self) -> "Door":
        self._writes.__enter__()
        return self

    def __exit__(self, kind: type | None, *_error: object) -> None:
        self._writes.__exit__(None, None, None)
        if kind is None:
            assert self.wire.crashes == [], "\n".join(self.wire.crashes)
            assert self.watch.found == [], f"written outside TANDEM_HOME: {self.watch.found}"
            assert self.house.changed() == [], "a file of the user's was changed"
            check_everything(self.context)


@pytest.fixture(scope="session")
def watch() -> WriteWatch:
    return WriteWatch()


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory where that is possible: every case begins with a copy of a whole home."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture
def door(root: Path, monkeypatch: pytest.MonkeyPatch, watch: WriteWatch) -> Iterator[Case]:
    house = House(root)
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in house.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)
    for module in TASK_MODULES:
        importlib.import_module(module)
    house.build()
    app = workers.app.app
    wire, context = Wire(app), house.open(app)
    monkeypatch.setattr(tasks.door, "current_context", lambda: context)
    monkeypatch.setattr(tasks.api, "open_context", lambda _settings: context)
    no_redis = partial(PartStatus, name="redis", state="down")
    monkeypatch.setattr(workers.app.TandemCelery, "_require_broker", lambda self: None)
    monkeypatch.setattr(Celery, "send_task", lambda self, *a, **o: wire.send_task(*a, **o))
    monkeypatch.setattr(app, "AsyncResult", lambda answer_id: wire.answers[answer_id])
    monkeypatch.setattr(app, "control", Nobody())
    for module in (workers.status, tasks.safety):
        monkeypatch.setattr(module, "redis_status", lambda s, *, now: (no_redis(observed_at=now), None))
    trained = partial(tasks.training.TrainingRun, start_child=FakeChild([finished()]))
    monkeypatch.setattr(tasks.training, "TrainingRun", trained)
    yield partial(Door, house, context=context, wire=wire, watch=watch)
    context.registry.engine.dispose()
    monkeypatch.undo()
