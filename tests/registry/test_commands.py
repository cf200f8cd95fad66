import pytest

from registry import commands, queue
from registry.errors import IllegalTransition, StaleWrite
from registry.records import Event, JobProgress, Lease, TrainingJob
from registry.states import Command, JobState, Priority
from registry.store import Registry
from registry.testing import START, ManualClock, add_queued_job, make_checkpoint


def give(registry: Registry, command: Command, job_id: str = "job-aaaaaa") -> tuple[TrainingJob, bool]:
    with registry.transaction() as tx:
        return commands.give(tx, job_id=job_id, command=command, actor="me", reason="a test")


def start(registry: Registry) -> tuple[TrainingJob, Lease]:
    with registry.transaction() as tx:
        add_queued_job(tx)
        claimed = queue.claim_next(tx, queues=tuple(Priority), holder="worker", seconds=60)
    assert claimed is not None
    return claimed.job, claimed.lease


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


def test_a_stopped_job_keeps_its_last_checkpoint_and_says_what_was_not_used(registry: Registry) -> None:
    job, lease = start(registry)
    progress = JobProgress(
        step=4, num_steps=10, epoch=0.4, num_tokens=99, num_unused_rows=6, reported_at=START
    )
    with registry.transaction() as tx:
        tx.add(make_checkpoint(job_id=job.id, step=2, id="ckpt-a-2"), actor="worker")
        tx.add(make_checkpoint(job_id=job.id, step=4, id="ckpt-a-4"), actor="worker")
        job = tx.update(job, progress=progress)
    give(registry, Command.STOP)
    with registry.transaction() as tx:
        stopped = commands.obey(tx, job, lease=lease, actor="worker")
    assert (stopped.state, stopped.final_checkpoint_id) == (JobState.STOPPED, "ckpt-a-4")
    assert stopped.note == "ended at step 4 of 10; 6 rows were never used"
    with registry.reading() as tx:
        last = tx.find(Event, subject_id=stopped.id, newest_first="id", limit=1)[0]
    assert last.reason == f"stop: its trainer has ended; {stopped.note}"


def test_a_job_that_never_ran_says_that_nothing_was_used(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    job, is_in_effect = give(registry, Command.STOP)
    assert is_in_effect
    assert (job.state, job.final_checkpoint_id) == (JobState.STOPPED, None)
    assert job.note == "nothing of its data was used"


def test_a_retry_grants_three_more_attempts_and_keeps_the_story(registry: Registry) -> None:
    job, lease = start(registry)
    with registry.transaction() as tx:
        queue.record_problem(
            tx, job, kind="diverged", message="NaN", can_retry=False, actor="worker", lease=lease
        )
    again, is_in_effect = give(registry, Command.RETRY)
    assert is_in_effect
    assert (again.state, again.attempts, again.max_attempts) == (JobState.QUEUED, 1, 4)
    assert (again.finished_at, [problem.kind for problem in again.problems]) == (None, ["diverged"])


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (Command.PAUSE, JobState.PAUSED),
        (Command.STOP, JobState.STOPPED),
        (Command.CANCEL, JobState.CANCELLED),
        (Command.SKIP, JobState.QUEUED),
    ],
)
def test_what_was_asked_of_a_job_whose_worker_died_is_done_when_it_is_put_back(
    registry: Registry, clock: ManualClock, command: Command, state: JobState
) -> None:
    start(registry)
    give(registry, command)
    clock.advance(61)
    with registry.transaction() as tx:
        (job,) = queue.requeue_abandoned(tx, actor="sweep")
    assert (job.state, job.command, job.attempts) == (state, None, 1)


def test_what_was_asked_of_a_job_is_done_when_its_worker_is_told_to_stop(registry: Registry) -> None:
    job, lease = start(registry)
    give(registry, Command.PAUSE)
    with registry.transaction() as tx:
        back = queue.put_back(tx, job, lease=lease, actor="worker", reason="shutdown")
    assert back.state is JobState.PAUSED


@pytest.mark.parametrize("command", [command for command in Command if command is not Command.RETRY])
def test_a_finished_job_takes_no_command_but_retry(registry: Registry, command: Command) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    give(registry, Command.CANCEL)
    with pytest.raises(IllegalTransition, match=f"job-aaaaaa is cancelled; only a job .* can {command}"):
        give(registry, command)
