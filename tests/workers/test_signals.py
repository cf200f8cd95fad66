import json
import logging
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from registry import hosts, queue
from registry.errors import RegistryUnavailable
from registry.records import TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import add_queued_job
from workers import signals
from workers.app import app
from workers.context import Context
from workers.testing import SilentContext


@pytest.fixture
def context(settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(app.control, "ping", lambda **_: [])
    monkeypatch.setattr(app.control, "inspect", lambda **_: Nobody())
    return SilentContext(settings=settings, registry=registry, celery=app)


class Nobody:
    """An inspection that nobody answers."""

    def active(self) -> None:
        return None


def put(context: Context, name: str, text: str = "") -> None:
    (context.settings.paths.control / name).write_text(text)


def job(context: Context, job_id: str = "job-aaaaaa") -> TrainingJob:
    with context.registry.reading() as tx:
        return tx.get(TrainingJob, job_id)


def start(context: Context) -> None:
    with context.registry.transaction() as tx:
        add_queued_job(tx)
        assert queue.claim_next(tx, queues=tuple(Priority), holder="worker:1", seconds=60)


def see(context: Context, *names: str, role: str = "train") -> None:
    with context.registry.transaction() as tx:
        for name in names:
            hosts.saw(tx, name=name, role=role)


def test_an_empty_file_means_the_job_that_runs_and_its_answer_says_asked_for(context: Context) -> None:
    start(context)
    put(context, "pause")
    (answer,) = signals.obey(context)
    assert (answer.subject, answer.answer) == ("job-aaaaaa", "asked for")
    assert job(context).command == "pause"
    control = context.settings.paths.control
    assert sorted(path.name for path in control.iterdir()) == ["pause.answer.json"]
    assert json.loads((control / "pause.answer.json").read_text())["answer"] == "asked for"


def test_a_file_is_obeyed_once(context: Context) -> None:
    start(context)
    put(context, "pause")
    assert len(signals.obey(context)) == 1
    assert signals.obey(context) == []


def test_a_file_may_name_the_job(context: Context) -> None:
    with context.registry.transaction() as tx:
        add_queued_job(tx, id="job-a")
        add_queued_job(tx, id="job-b")
    put(context, "cancel", "job-b\n")
    (answer,) = signals.obey(context)
    assert answer.answer == "in effect"
    assert (job(context, "job-a").state, job(context, "job-b").state) == (JobState.QUEUED, JobState.CANCELLED)


def test_resume_means_the_job_that_was_paused(context: Context) -> None:
    with context.registry.transaction() as tx:
        add_queued_job(tx)
    put(context, "pause", "job-aaaaaa")
    signals.obey(context)
    put(context, "resume")
    signals.obey(context)
    assert job(context).state is JobState.QUEUED


def test_resume_means_the_job_that_was_paused_last_whichever_began_last(context: Context) -> None:
    with context.registry.transaction() as tx:
        for name in ("job-a", "job-b", "job-c"):
            add_queued_job(tx, id=name)
        began = tx.update(tx.get(TrainingJob, "job-a"), started_at=tx.now)
    assert began.started_at is not None
    for name in ("job-a", "job-c", "job-b"):
        put(context, "pause", name)
        signals.obey(context)
    for name in ("job-b", "job-c", "job-a"):
        put(context, "resume")
        (answer,) = signals.obey(context)
        assert (answer.subject, answer.answer) == (name, "in effect")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("stop", "", "no job that stop could mean"),
        ("pause", "job-nowhere", "There is no TrainingJob 'job-nowhere'"),
        ("drain", "mars", "'mars'"),
        ("skip", "\x00\xff" * 400, "There is no TrainingJob"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_answer(
    context: Context, name: str, text: str, words: str
) -> None:
    put(context, name, text)
    (answer,) = signals.obey(context)
    assert answer.answer.startswith("refused: ")
    assert words in answer.answer


def test_pause_after_drains_the_host_that_trains_once_its_job_is_done(context: Context) -> None:
    start(context)
    see(context, "worker", "another")
    put(context, "pause-after")
    (answer,) = signals.obey(context)
    assert answer.subject == "job-aaaaaa"
    assert answer.answer == "asked for; it takes nothing new once job-aaaaaa is done"
    with context.registry.reading() as tx:
        assert hosts.obstacle(tx, name="worker") == ""
        assert hosts.known(tx, name="worker").drain_after_job_id == "job-aaaaaa"
        assert not hosts.known(tx, name="another").is_draining


def test_pause_after_a_job_that_has_ended_is_in_effect_at_once(context: Context) -> None:
    start(context)
    see(context, "worker")
    with context.registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "job-aaaaaa"), to=JobState.SUCCEEDED, actor="worker")
    put(context, "pause-after", "job-aaaaaa")
    (answer,) = signals.obey(context)
    assert (answer.subject, answer.answer) == ("job-aaaaaa", "in effect")


def test_of_several_hosts_one_must_be_named(context: Context) -> None:
    with context.registry.transaction() as tx:
        add_queued_job(tx)
    see(context, "east", "west")
    for name, text in (("drain", ""), ("undrain", ""), ("pause-after", "job-aaaaaa")):
        put(context, name, text)
        (answer,) = signals.obey(context)
        assert answer.answer.startswith("refused: which host is meant is not clear.")
        assert "east, west" in answer.answer
    put(context, "drain", "west")
    (answer,) = signals.obey(context)
    assert (answer.subject, answer.answer) == ("west", "in effect")


def test_drain_and_undrain_mean_the_only_host(context: Context) -> None:
    see(context, "alone")
    for name, is_draining in (("drain", True), ("undrain", False)):
        put(context, name)
        (answer,) = signals.obey(context)
        assert (answer.subject, answer.answer) == ("alone", "in effect")
        with context.registry.reading() as tx:
            assert hosts.known(tx, name="alone").is_draining is is_draining


def test_a_folder_or_another_name_is_left_alone(context: Context) -> None:
    (context.settings.paths.control / "notes.txt").write_text("mine")
    (context.settings.paths.control / "pause").mkdir()
    assert signals.obey(context) == []
    assert (context.settings.paths.control / "notes.txt").read_text() == "mine"
    assert (context.settings.paths.control / "pause").is_dir()


def without_permission(monkeypatch: pytest.MonkeyPatch, *, method: str, name: str) -> None:
    """Only that file: tests run as root, whom no permission keeps out."""
    real = getattr(Path, method)

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, method, refuse)


def test_a_file_that_cannot_be_read_is_refused_and_hides_no_other(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(context)
    put(context, "pause", "job-aaaaaa")
    without_permission(monkeypatch, method="open", name="pause")
    put(context, "skip", "job-aaaaaa")
    answers = {answer.command: answer.answer for answer in signals.obey(context)}
    assert answers["pause"].startswith("refused: it cannot be read (Permission denied)")
    assert answers["skip"] == "asked for"
    control = context.settings.paths.control
    assert sorted(path.name for path in control.iterdir()) == ["pause.answer.json", "skip.answer.json"]


def test_what_cannot_be_answered_is_obeyed_all_the_same_and_told_in_the_log(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def is_full(path: Path, **_value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    start(context)
    monkeypatch.setattr(signals, "write_json", is_full)
    put(context, "pause")
    with caplog.at_level(logging.WARNING):
        assert [answer.answer for answer in signals.obey(context)] == ["asked for"]
    assert job(context).command == "pause"
    assert "No space left on device): job-aaaaaa asked for" in caplog.text
    assert list(context.settings.paths.control.iterdir()) == []


def test_a_file_that_cannot_be_taken_away_is_obeyed_once_and_the_next_of_its_name_again(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start(context)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        without_permission(patched, method="unlink", name="pause")
        put(context, "pause")
        assert len(signals.obey(context)) == 1
        assert signals.obey(context) == []
    assert caplog.text.count("cannot be taken away") == 1
    (context.settings.paths.control / "pause").unlink()
    put(context, "pause", "job-nowhere")
    assert [answer.subject for answer in signals.obey(context)] == ["job-nowhere"]


def test_a_file_waits_while_the_registry_is_away(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def is_locked(*_: object, **__: object) -> None:
        raise RegistryUnavailable("It stays locked.")

    start(context)
    put(context, "pause")
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(signals.steering, "command", is_locked)
        assert signals.obey(context) == []
        assert signals.obey(context) == []
    assert caplog.text.count("It stays locked.") == 1
    assert len(signals.obey(context)) == 1
    assert job(context).command == "pause"


def test_a_control_folder_that_cannot_be_looked_into_ends_nobody(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_permission(monkeypatch, method="lstat", name="pause")
    put(context, "pause")
    assert signals.obey(context) == []


def test_a_file_found_again_after_a_kill_is_not_obeyed_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with context.registry.transaction() as tx:
        add_queued_job(tx)
    path = context.settings.paths.control / "pause"
    with monkeypatch.context() as patched:
        without_permission(patched, method="unlink", name="pause")
        put(context, "pause", "job-aaaaaa")
        signals.obey(context)
    with context.registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "job-aaaaaa"), to=JobState.QUEUED, actor="a person")
    another = SilentContext(settings=context.settings, registry=context.registry, celery=app)
    assert len(signals.obey(another)) == 1
    assert job(context).state is JobState.QUEUED
    assert not path.exists()
