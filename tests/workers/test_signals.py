import json

import pytest

from config.settings import Settings
from registry import hosts, queue
from registry.records import TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import add_queued_job
from workers import signals
from workers.app import app
from workers.context import Context, Message


class SilentContext(Context):
    """Rings into the air: what is sent is tested with a real broker elsewhere."""

    def send(self, message: Message) -> str:
        return message.task


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


def test_pause_after_drains_this_host_once_the_running_job_is_done(context: Context) -> None:
    start(context)
    with context.registry.transaction() as tx:
        hosts.saw(tx, name=context.host, role="train")
    put(context, "pause-after")
    (answer,) = signals.obey(context)
    assert (answer.subject, answer.answer) == ("job-aaaaaa", "asked for")
    with context.registry.reading() as tx:
        assert hosts.obstacle(tx, name=context.host) == ""
        assert hosts.known(tx, name=context.host).drain_after_job_id == "job-aaaaaa"


def test_drain_and_undrain_mean_this_host(context: Context) -> None:
    with context.registry.transaction() as tx:
        hosts.saw(tx, name=context.host, role="train")
    for name, is_draining in (("drain", True), ("undrain", False)):
        put(context, name)
        (answer,) = signals.obey(context)
        assert (answer.subject, answer.answer) == (context.host, "in effect")
        with context.registry.reading() as tx:
            assert hosts.known(tx, name=context.host).is_draining is is_draining


def test_a_folder_or_another_name_is_left_alone(context: Context) -> None:
    (context.settings.paths.control / "notes.txt").write_text("mine")
    (context.settings.paths.control / "pause").mkdir()
    assert signals.obey(context) == []
    assert (context.settings.paths.control / "notes.txt").read_text() == "mine"
    assert (context.settings.paths.control / "pause").is_dir()
