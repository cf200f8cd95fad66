"""The table of failures: each row is reached by what it is about, and what it says is what happens."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from registry import commands
from registry.records import TrainingJob
from registry.states import Command, JobState
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job
from trainer.messages import Failed, FailureKind
from trainer.process import EXIT_CODES, UNSAID
from workers import failures
from workers.failures import FAIL, LATER, POLICIES, REJECT, SOON, policy_for
from workers.runner import TrainingRun
from workers.testing import FakeChild, progress

Start = Callable[..., TrainingRun]
SAID = sorted(set(EXIT_CODES) - set(UNSAID))


def job_of(registry: Registry) -> TrainingJob:
    with registry.reading() as tx:
        return tx.get(TrainingJob, "job-aaaaaa")


def count(*values: int | None) -> Callable[[], int | None]:
    """The kernel's count, as it is found one look after another."""
    found = iter(values)
    return lambda: next(found)


def lose_the_worker(start: Start, registry: Registry, clock: ManualClock) -> None:
    start(FakeChild([]))
    clock.advance(61)
    with registry.transaction() as tx:
        failures.requeue_abandoned(tx, actor="sweep")


@pytest.mark.parametrize("kind", SAID)
def test_what_the_trainer_says_ends_the_attempt_as_its_row_tells(
    registry: Registry, start: Start, kind: FailureKind
) -> None:
    start(FakeChild([progress(3), Failed(kind=kind, message="no")], return_code=1)).run()
    job, policy = job_of(registry), POLICIES[kind]
    assert [problem.kind for problem in job.problems] == [kind]
    wanted = {REJECT: JobState.REJECTED, FAIL: JobState.FAILED}
    assert job.state is wanted.get(policy, JobState.QUEUED)
    assert (job.not_before_at is not None) == (policy == LATER)


def test_every_other_row_is_reached_by_the_runner_or_the_sweep(
    registry: Registry, start: Start, clock: ManualClock
) -> None:
    lose_the_worker(start, registry, clock)
    start(FakeChild([], return_code=-9)).run()
    clock.advance(600)
    start(FakeChild([], return_code=-9), count_oom_kills=count(3, 4)).run()
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-bbbbbb", parent="ckpt-nobody")
    start(FakeChild([])).run()
    with registry.reading() as tx:
        orphan = tx.get(TrainingJob, "job-bbbbbb")
    kinds = {problem.kind for problem in (*job_of(registry).problems, *orphan.problems)}
    assert kinds == set(POLICIES) - set(SAID)


def test_a_job_that_is_killed_again_and_again_waits_ever_longer(
    registry: Registry, start: Start, clock: ManualClock
) -> None:
    start(FakeChild([], return_code=-9)).run()
    assert job_of(registry).not_before_at is None
    start(FakeChild([], return_code=-9)).run()
    job = job_of(registry)
    assert job.state is JobState.QUEUED
    assert job.not_before_at is not None
    assert 15 <= (job.not_before_at - clock.now).total_seconds() <= 30
    clock.advance(30)
    start(FakeChild([], return_code=-9)).run()
    assert job_of(registry).state is JobState.FAILED


def test_a_job_whose_worker_is_lost_again_waits_as_the_table_says(
    registry: Registry, start: Start, clock: ManualClock
) -> None:
    lose_the_worker(start, registry, clock)
    assert (job_of(registry).state, job_of(registry).not_before_at) == (JobState.QUEUED, None)
    lose_the_worker(start, registry, clock)
    job = job_of(registry)
    assert job.not_before_at is not None
    assert job.not_before_at > clock.now + timedelta(seconds=10)


def test_the_waits_begin_anew_with_the_attempts_that_a_person_grants(
    registry: Registry, start: Start, clock: ManualClock
) -> None:
    for _ in range(3):
        start(FakeChild([], return_code=-9)).run()
        clock.advance(3600)
    with registry.transaction() as tx:
        commands.give(tx, job_id="job-aaaaaa", command=Command.RETRY, actor="me", reason="again")
    before = job_of(registry).not_before_at
    start(FakeChild([], return_code=-9)).run()
    assert (job_of(registry).attempts, job_of(registry).not_before_at) == (4, before)


def test_waits_grow_and_the_first_failures_have_none() -> None:
    waits = [SOON.wait_seconds(num_failures=number, draw=lambda: 1.0) for number in range(1, 8)]
    assert waits == [0, 30, 60, 120, 240, 480, 600]
    assert [LATER.wait_seconds(num_failures=number, draw=lambda: 1.0) for number in (1, 2)] == [20, 40]
    assert REJECT.wait_seconds(num_failures=1) == 0


def test_a_class_that_nobody_knows_is_tried_again() -> None:
    assert policy_for("something") is SOON


def test_the_table_names_every_class_that_the_trainer_says() -> None:
    assert set(SAID) <= set(POLICIES)
