"""A furnished home, a wire without Redis, and what must hold after every case."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Celery
from celery.backends.base import Backend
from kombu.utils.json import dumps, loads
from kombu.utils.uuid import uuid

from config.settings import Settings, load_settings
from registry import leases, queue
from registry.files import sha256_file
from registry.records import Dataset, Event, Lease, Record, Suite, TrainingJob
from registry.schema import upgrade
from registry.states import TRANSITIONS, JobState, Priority
from registry.store import Registry, Transaction
from registry.tables import TABLES
from registry.testing import make_checkpoint, make_dataset, make_job, make_suite
from workers.context import Context
from workers.contracts import TASKS
from workers.errors import TaskFailed

HOST = "fuzzed"
ROW = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "b"}]}\n'
FILES = {
    "good.jsonl": ROW % "a",
    "more.jsonl": "".join(ROW % f"more {number}" for number in range(3)),
    "suite.jsonl": "".join(ROW % f"asked {number}" for number in range(3)),
    "bad.jsonl": ROW % "a" + "{\n",
    "empty.jsonl": "",
    "-dash.jsonl": ROW % "dash",
    "[red].jsonl": ROW % "markup",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
TRACEBACK = ("Traceback", 'File "')


@dataclass
class Answer:
    """A finished task as its caller sees it: result and error have travelled as JSON."""

    backend: Backend
    value: Any
    error: Exception | None

    def get(self, **_options: Any) -> Any:
        """The result, or the error raised."""
        if self.error is not None:
            carried = self.backend.prepare_exception(self.error, serializer="json")
            raise self.backend.exception_to_python(loads(dumps(carried)))
        return loads(dumps(self.value))


@dataclass
class Wire:
    """Stands for Redis and a control worker: what has a result runs at once, bells are counted."""

    app: Celery
    answers: dict[str, Answer] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    num_bells: int = 0

    def send_task(
        self, name: str, args: Any = None, kwargs: dict[str, Any] | None = None, **_options: Any
    ) -> Answer:
        """Celery's `send_task`, without a broker."""
        body = loads(dumps(kwargs or {}))
        if TASKS[name].has_result:
            return self.run(name, args=args, kwargs=body)
        self.num_bells += 1
        return self._keep(Answer(Backend(self.app), None, None))

    def run(self, name: str, *, args: Any = None, kwargs: dict[str, Any] | None = None) -> Answer:
        """Run a task through Celery's own machinery; what nobody expected is kept as a crash."""
        done = self.app.tasks[name].apply(args=args or (), kwargs=kwargs or {})
        error = done.result if done.failed() else None
        if error is not None and not isinstance(error, TaskFailed):
            self.crashes.append(str(done.traceback))
        if isinstance(error, TaskFailed) and (
            not str(error) or any(word in str(error) for word in TRACEBACK)
        ):
            self.crashes.append(f"{name} says: {error}")
        return self._keep(Answer(Backend(self.app), None if error else done.result, error))

    def _keep(self, answer: Answer) -> Answer:
        answer.id = uuid()  # type: ignore[attr-defined]
        self.answers[answer.id] = answer  # type: ignore[attr-defined]
        return answer


class Nobody:
    """Stands for `app.control` where no worker answers."""

    def ping(self, **_options: Any) -> list[dict[str, Any]]:
        """One worker, so that there is a host."""
        return [{f"control@{HOST}": {"ok": "pong"}}]

    def inspect(self, **_options: Any) -> Nobody:
        """Itself."""
        return self

    def active(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class WriteWatch:
    """Remembers every write that Python makes outside a directory, while it is on."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.named: list[Path] = []
        self.found: list[str] = []
        self._thread = threading.get_ident()
        sys.addaudithook(self._see)

    @contextmanager
    def only(self, inside: Path) -> Iterator[None]:
        """Writes anywhere else are a finding, unless the user has `named` the file."""
        self.inside, self.named, self.found = inside, [], []
        try:
            yield
        finally:
            self.inside = None

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside is None or threading.get_ident() != self._thread:
            return
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            self._check(args[0])
        elif event in CHANGES:
            is_relative_to_a_directory = isinstance(args[-1], int) and args[-1] >= 0
            for name in () if is_relative_to_a_directory else args:
                self._check(name)

    def _check(self, name: object) -> None:
        if not isinstance(name, str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(name))  # noqa: PTH100 - pathlib must not be called from here
        if "__pycache__" in path or path == os.devnull or path.startswith(f"{self.inside}{os.sep}"):
            return
        if not any(_belongs(path, target=str(target)) for target in self.named):
            self.found.append(path)


def _belongs(path: str, *, target: str) -> bool:
    """The file that the user named, the temporary one beside it, or a folder on the way to it."""
    folder, name = os.path.split(target)
    is_temporary = path.startswith(os.path.join(folder, f".{name}."))  # noqa: PTH118 - see `_check`
    return path == target or is_temporary or target.startswith(f"{path}{os.sep}")


@dataclass(frozen=True)
class House:
    """A home with one of everything, a working directory beside it, and a place that nobody may touch."""

    root: Path

    @property
    def home(self) -> Path:
        """TANDEM_HOME."""
        return self.root / "case" / "home"

    @property
    def work(self) -> Path:
        """Where the user stands."""
        return self.root / "case" / "work"

    def environment(self) -> dict[str, str]:
        """What every door reads its settings from. Port 1 answers nobody."""
        return {
            "TANDEM_HOME": str(self.home),
            "TANDEM_REDIS__URL": "redis://127.0.0.1:1/0",
            "TANDEM_SERVER__PORT": "1",
            "TANDEM_SCHEDULE__INBOX_SETTLE_SECONDS": "0",
            "TANDEM_REGRESSION__MIN_PAIRS": "2",
        }

    def build(self) -> None:
        """Make the model of every case, once."""
        for directory in (self.home, self.work, self.root / "case" / "outside"):
            directory.mkdir(parents=True)
        for name, text in FILES.items():
            (self.work / name).write_text(text)
            (self.root / "case" / "outside" / name).write_text(text)
        make_model(self.work / "model")
        os.chdir(self.work)
        settings = load_settings()
        settings.paths.prepare()
        registry = Registry(settings.database_url)
        upgrade(registry)
        with registry.transaction() as tx:
            furnish(tx, settings=settings)
        registry.engine.dispose()
        shutil.copytree(self.root / "case", self.root / "model")

    def open(self, app: Celery) -> Context:
        """One context for all cases: its statements are compiled once."""
        settings = load_settings()
        return Context(settings=settings, registry=Registry(settings.database_url), celery=app)

    def changed(self) -> list[str]:
        """The user's own files, beside the home, that are not what they were."""
        then = {path.relative_to(self.root / "model"): path for path in (self.root / "model").rglob("*")}
        return [
            str(name)
            for name, path in then.items()
            if name.parts[0] != "home" and path.is_file()
            if not (now := self.root / "case" / name).is_file() or now.read_bytes() != path.read_bytes()
        ]

    def restore(self, context: Context) -> None:
        """Everything as it was built, on the same paths."""
        context.registry.engine.dispose()
        os.chdir(self.root)
        shutil.rmtree(self.root / "case", ignore_errors=True)
        shutil.copytree(self.root / "model", self.root / "case", symlinks=True)
        os.chdir(self.work)


def make_model(directory: Path) -> None:
    """A directory that looks like a model."""
    directory.mkdir()
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (directory / name).write_text("{}")


def furnish(tx: Transaction, *, settings: Settings) -> None:
    """A base model, a suite, a host, and a job in every state."""
    paths = settings.paths
    suite = _store(paths.suites, text=FILES["suite.jsonl"])
    tx.add(make_suite(content_sha256=suite.stem, path=str(suite)), actor="test")
    tx.add(make_checkpoint(id="base-1", origin="base", path=str(paths.base_model / "base-1")), actor="test")
    tx.add(make_checkpoint(parent_checkpoint_id="base-1"), actor="test")
    for number, state in enumerate(JobState):
        kept = _store(paths.datasets, text=ROW % f"known {number}")
        dataset = make_dataset(id=f"ds-{number}", content_sha256=kept.stem, path=str(kept))
        tx.add(dataset, actor="test")
        priority = list(Priority)[number % 3]
        job = make_job(
            id=f"job-{state}",
            dataset_id=dataset.id,
            state=state,
            priority=priority,
            queued_at=tx.now,
            name=f"[/{state}]",
        )
        tx.add(job.changed(submitted_at=tx.now, place=number), actor="test")
        if state is JobState.RUNNING:
            leases.acquire(tx, resource=queue.resource_of(job.id), holder=f"{HOST}:1", seconds=3600)
    tx.insert(_host(tx))


def _host(tx: Transaction) -> Record:
    kind = next(kind for kind in TABLES if kind.__name__ == "Host")
    return kind.model_validate({"id": HOST, "roles": ("control",), "seen_at": tx.now})


def _store(directory: Path, *, text: str) -> Path:
    temporary = directory / "new"
    temporary.write_text(text)
    return temporary.rename(directory / f"{sha256_file(temporary)}.jsonl")


def check_everything(context: Context) -> None:
    """What must hold after every case, whatever was asked: rows, files and the story between them agree."""
    with context.registry.reading() as tx:
        for kind in TABLES:
            tx.find(kind)  # every row is a valid record
        datasets = {dataset.id: dataset for dataset in tx.find(Dataset)}
        jobs = tx.find(TrainingJob)
        stored = [*datasets.values(), *tx.find(Suite)]
        events = tx.find(Event)
        held = [lease.id for lease in tx.find(Lease) if not lease.is_expired(now=tx.now)]
    assert {job.dataset_id for job in jobs} == set(datasets), "a job without a dataset, or the reverse"
    for record in stored:
        path = Path(record.path)
        assert path.stem == record.content_sha256 == sha256_file(path), path
        assert path.parent in (context.settings.paths.datasets, context.settings.paths.suites), path
    running = {queue.resource_of(job.id) for job in jobs if job.state is JobState.RUNNING}
    assert set(held) <= running, f"leases left behind: {held}"
    _check_story(jobs, events=events)
    _check_files(context.settings)


def _check_story(jobs: list[TrainingJob], *, events: list[Event]) -> None:
    """Each job came to its state by legal steps."""
    states = set(JobState)
    for job in jobs:
        story = sorted(
            (e for e in events if e.subject_id == job.id and e.after in states), key=lambda e: e.id or 0
        )
        assert story, f"{job.id}: nothing is told of it"
        assert story[-1].after == job.state, f"{job.id}: its last event is not its state"
        for step in story:
            if step.before is not None and step.before != step.after:
                assert JobState(step.after) in TRANSITIONS[JobState][JobState(step.before)], step


def _check_files(settings: Settings) -> None:
    """No temporary file is left; names say the content; status is strict JSON; a refusal has its reason."""
    paths = settings.paths
    for directory in (paths.datasets, paths.suites):
        for path in directory.iterdir():
            assert path.stem == sha256_file(path), f"{path} is not what its name says"
    for directory in (paths.root / "data", paths.root / "models", paths.status, paths.refused, paths.control):
        left = [path for path in directory.rglob("*") if path.name.startswith((".", "tmp"))]
        assert left == [], f"left behind: {left}"
    for path in paths.status.glob("*.json"):
        json.loads(path.read_text(), parse_constant=_refuse)
    refused = {os.fsencode(path) for path in paths.refused.iterdir()}
    reasons = {name for name in refused if name.endswith(b".reason.json")}
    assert len(reasons) * 2 == len(refused), f"refused without a reason: {refused}"


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


def age(directory: Path, *, by: timedelta = timedelta(minutes=5)) -> None:
    """Make every file look as if nobody had written to it for a while."""
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - a name need not be text
            then = os.lstat(path).st_mtime - by.total_seconds()
            os.utime(path, (then, then), follow_symlinks=False)
