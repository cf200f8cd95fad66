"""The inbox: what stands in one file's way stands in no other's."""

import json
import logging
from pathlib import Path

import pytest

from config.settings import Settings, load_settings, setting_names
from registry.errors import RegistryUnavailable
from registry.messages import Nothing
from registry.records import TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import make_checkpoint, make_registry
from tasks import training
from workers import inbox, signals
from workers.app import app
from workers.context import Context
from workers.testing import SilentContext


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = make_registry(tmp_path)
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
    return registry


@pytest.fixture
def context(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Context:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_SCHEDULE__INBOX_SETTLE_SECONDS", "0")
    settings = load_settings(home=tmp_path / "home")
    settings.paths.prepare()
    return SilentContext(settings=settings, registry=registry, celery=app)


def limited(context: Context, **max_waiting: int) -> Context:
    """The same context where no more jobs than these may wait."""
    rules = context.settings.queue.changed(max_waiting=max_waiting)
    settings: Settings = context.settings.model_copy(update={"queue": rules})
    return SilentContext(settings=settings, registry=context.registry, celery=app)


def drop(context: Context, name: str, *, text: str | None = None) -> Path:
    path = context.settings.paths.inbox / name
    path.write_text(text or json.dumps({"prompt": name, "completion": "b"}) + "\n")
    return path


def jobs(context: Context) -> list[tuple[str, Priority]]:
    with context.registry.reading() as tx:
        return [(job.name, job.priority) for job in tx.find(TrainingJob, order_by="name")]


def left(context: Context) -> list[str]:
    return sorted(path.name for path in context.settings.paths.inbox.rglob("*.jsonl"))


def end_the_job(context: Context, state: JobState) -> TrainingJob:
    with context.registry.transaction() as tx:
        (job,) = tx.find(TrainingJob)
        if state in (JobState.FAILED, JobState.REJECTED, JobState.SUCCEEDED):
            job = tx.transition(job, to=JobState.RUNNING, actor="test")
        return tx.transition(job, to=state, actor="test", finished_at=tx.now)


def refusals(context: Context) -> dict[str, str]:
    found = context.settings.paths.refused.rglob("*.reason.json")
    return {path.name: json.loads(path.read_text())["reason"] for path in found}


def test_a_full_queue_keeps_its_files_and_shuts_no_other(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    full = limited(context, high=1)
    for name in ("high/a.jsonl", "high/b.jsonl", "high/c.jsonl", "d.jsonl", "low/e.jsonl"):
        drop(full, name)
    with caplog.at_level(logging.WARNING):
        training.scan(Nothing(), full)
        training.scan(Nothing(), full)
    assert jobs(full) == [("a", Priority.HIGH), ("d", Priority.NORMAL), ("e", Priority.LOW)]
    assert left(full) == ["b.jsonl", "c.jsonl"]
    assert caplog.text.count("The inbox keeps what is for high: 1 jobs wait in high") == 1


def test_a_file_that_cannot_be_handled_stays_alone(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = inbox.done

    def refuse_a(path: Path) -> None:
        if path.name == "a.jsonl":
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path)

    monkeypatch.setattr(inbox, "done", refuse_a)
    drop(context, "high/a.jsonl")
    drop(context, "low/b.jsonl")
    with caplog.at_level(logging.WARNING):
        training.scan(Nothing(), context)
        training.scan(Nothing(), context)
    assert [name for name, _ in jobs(context)] == ["a", "b"]
    assert left(context) == ["a.jsonl"]
    assert caplog.text.count("a.jsonl stays in the inbox") == 1


def test_a_registry_that_is_away_ends_the_scan_and_no_file_is_refused(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_away(*_: object, **__: object) -> None:
        raise RegistryUnavailable("It is away.")

    drop(context, "a.jsonl")
    monkeypatch.setattr(training.submission, "submit", is_away)
    with pytest.raises(RegistryUnavailable):
        training.scan(Nothing(), context)
    assert left(context) == ["a.jsonl"]
    assert refusals(context) == {}


def test_the_inbox_is_looked_at_although_a_control_file_cannot_be_read(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refuse_pause(path: Path, *args: object, **options: object) -> object:
        if path.name == "pause":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse_pause)
    (context.settings.paths.control / "pause").touch()
    drop(context, "a.jsonl")
    training.scan(Nothing(), context)
    assert [name for name, _ in jobs(context)] == ["a"]
    answer = json.loads((context.settings.paths.control / "pause.answer.json").read_text())
    assert signals.SignalAnswer.model_validate(answer).answer.startswith("refused: it cannot be read")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (JobState.CANCELLED, "`tandem job retry {id}` takes it up again"),
        (JobState.STOPPED, "`tandem job retry {id}` takes it up again"),
        (JobState.FAILED, "`tandem job retry {id}` takes it up again"),
        (JobState.REJECTED, "`tandem job show {id}` tells why"),
    ],
)
def test_a_file_whose_job_ended_without_success_is_moved_aside_with_the_way_on(
    context: Context, state: JobState, words: str
) -> None:
    text = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    drop(context, "a.jsonl", text=text)
    training.scan(Nothing(), context)
    job = end_the_job(context, state)
    drop(context, "again.jsonl", text=text)
    training.scan(Nothing(), context)
    assert left(context) == []
    (reason,) = refusals(context).values()
    assert reason.startswith(f"The same job exists: {job.id} is {state}.")
    assert words.format(id=job.id) in reason


@pytest.mark.parametrize("state", [None, JobState.PAUSED, JobState.SUCCEEDED])
def test_a_file_whose_job_waits_or_succeeded_is_done_and_that_is_told(
    context: Context, state: JobState | None, caplog: pytest.LogCaptureFixture
) -> None:
    text = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    drop(context, "a.jsonl", text=text)
    training.scan(Nothing(), context)
    if state is not None:
        end_the_job(context, state)
    drop(context, "again.jsonl", text=text)
    with caplog.at_level(logging.INFO):
        training.scan(Nothing(), context)
    assert left(context) == []
    assert refusals(context) == {}
    assert "again.jsonl: the same job exists" in caplog.text
