import pytest

from registry import commands, queue
from registry.errors import IllegalTransition, StaleWrite
from registry.records import Event, Lease, TrainingJob
from registry.states import Command, JobState, Priority
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job


def give(registry: Registry, command: Command, job_id: str = "job-aaaaaa") -> tuple[TrainingJob, bool]:
    with registry.transaction() as tx:
        return commands.give(tx, job_id=job_id, command=command, actor="me", reason="a test")


def start(registry: Registry) -> tuple[TrainingJob, Lease]:
    with registry.transaction() as tx:
        add_queued_job(tx)
        claimed = queue.claim_next(tx, queues=tuple(Priority), holder="worker", seconds=60)
    assert claimed is not None
    return claimed


@pytest.mark.parametrize(
    ("command", "state"), [(Command.PAUSE, JobState.PAUSED), (Command.CANCEL, JobState.CANCELLED)]
)
def test_a_waiting_job_obeys_at_once(registry: Registry, command: Command, state: JobState) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    job, is_in_effect = give(registry, command)
    assert is_in_effect
    assert job.state is state
    with registry.reading() as tx:
        assert queue.waiting(tx) == []


def test_a_paused_job_waits_until_it_is_resumed(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    give(registry, Command.PAUSE)
    job, is_in_effect = give(registry, Command.RESUME)
    assert is_in_effect
    assert job.state is JobState.QUEUED


def test_a_skipped_job_goes_to_the_end_of_its_queue(registry: Registry, clock: ManualClock) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-a")
    clock.advance(1)
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-b")
    clock.advance(1)
    give(registry, Command.SKIP, "job-a")
    with registry.reading() as tx:
        assert [job.id for job in queue.waiting(tx)] == ["job-b", "job-a"]


def test_a_running_job_is_asked_and_says_so(registry: Registry) -> None:
    start(registry)
    job, is_in_effect = give(registry, Command.PAUSE)
    assert not is_in_effect
    assert (job.state, job.command) == (JobState.RUNNING, Command.PAUSE)
    with registry.reading() as tx:
        assert commands.pending(tx, job_id=job.id) is Command.PAUSE
        steps = [event.after for event in tx.find(Event, subject_id=job.id)]
    assert "pause asked for" in steps


def test_a_running_job_obeys_when_its_trainer_has_ended(registry: Registry) -> None:
    job, lease = start(registry)
    give(registry, Command.PAUSE)
    with registry.transaction() as tx:
        paused = commands.obey(tx, job, lease=lease, actor="worker")
    assert (paused.state, paused.command) == (JobState.PAUSED, None)


def test_a_holder_that_lost_its_lease_cannot_obey_any_more(registry: Registry, clock: ManualClock) -> None:
    job, lease = start(registry)
    give(registry, Command.PAUSE)
    clock.advance(61)
    with registry.transaction() as tx, pytest.raises(StaleWrite):
        commands.obey(tx, job, lease=lease, actor="worker")


@pytest.mark.parametrize("command", list(Command))
def test_a_finished_job_takes_no_command(registry: Registry, command: Command) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    give(registry, Command.CANCEL)
    with pytest.raises(IllegalTransition, match=f"job-aaaaaa is cancelled; only a job .* can {command}"):
        give(registry, command)
