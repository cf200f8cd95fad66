import pytest

from registry import commands, order, queue
from registry.errors import IllegalTransition, NotFound, QueueFull
from registry.order import QueueRules
from registry.records import Event, TrainingJob
from registry.states import Command, JobState, Priority
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job, make_job

ALL = tuple(Priority)


def add(registry: Registry, clock: ManualClock, *names: str, **changes: object) -> None:
    for name in names:
        clock.advance(1)
        with registry.transaction() as tx:
            add_queued_job(tx, id=name, **changes)


def names(registry: Registry, rules: QueueRules | None = None) -> list[str]:
    with registry.reading() as tx:
        return [job.id for job in queue.waiting(tx, rules=rules)]


def claim(registry: Registry, *, rules: QueueRules | None = None) -> str | None:
    with registry.transaction() as tx:
        found = queue.claim_next(tx, queues=ALL, holder="worker", seconds=60, rules=rules)
    return None if found is None else found[0].id


def test_more_jobs_than_a_page_come_in_order(registry: Registry, clock: ManualClock) -> None:
    wanted = [f"job-{number:03d}" for number in reversed(range(30))]
    add(registry, clock, *wanted)
    assert names(registry) == wanted


def test_jobs_of_one_moment_keep_the_order_of_submission(registry: Registry) -> None:
    for name in ("job-c", "job-a", "job-b"):
        with registry.transaction() as tx:
            add_queued_job(tx, id=name)
    assert names(registry) == ["job-c", "job-a", "job-b"]


def test_a_job_can_be_moved_to_the_front_before_another_and_to_the_end(
    registry: Registry, clock: ManualClock
) -> None:
    add(registry, clock, "a", "b", "c", "d")
    for job_id, before_id, to_end, wanted in [
        ("c", None, False, "cabd"),
        ("c", "d", False, "abcd"),
        ("a", None, True, "bcda"),
        ("d", "d2", False, None),
        ("b", "a", False, "cdba"),
    ]:
        with registry.transaction() as tx:
            if wanted is None:
                with pytest.raises(IllegalTransition, match="d2"):
                    order.move(tx, job_id=job_id, before_id=before_id, actor="me")
                continue
            order.move(tx, job_id=job_id, before_id=before_id, to_end=to_end, actor="me")
        assert names(registry) == list(wanted)
    with registry.reading() as tx:
        assert "moved before a of normal." in [event.reason for event in tx.find(Event, subject_id="b")]


def test_a_moved_job_stays_moved_when_others_arrive(registry: Registry, clock: ManualClock) -> None:
    add(registry, clock, "a", "b")
    with registry.transaction() as tx:
        order.move(tx, job_id="a", before_id=None, to_end=True, actor="me")
    add(registry, clock, "c")
    assert names(registry) == ["b", "a", "c"]


def test_another_priority_puts_a_job_where_its_arrival_belongs(
    registry: Registry, clock: ManualClock
) -> None:
    add(registry, clock, "early", priority="low")
    add(registry, clock, "high-1", "high-2", priority="high")
    with registry.transaction() as tx:
        order.set_priority(tx, job_id="early", priority=Priority.HIGH, actor="me")
    assert names(registry) == ["early", "high-1", "high-2"]


def test_a_job_that_ended_has_no_place(registry: Registry, clock: ManualClock) -> None:
    add(registry, clock, "a")
    with registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "a"), to=JobState.CANCELLED, actor="me")
        with pytest.raises(IllegalTransition, match="a is cancelled: it has no place"):
            order.move(tx, job_id="a", before_id=None, actor="me")
        with pytest.raises(IllegalTransition):
            order.set_priority(tx, job_id="a", priority=Priority.HIGH, actor="me")


def test_without_ageing_low_waits_for_ever_and_with_it_it_rises(
    registry: Registry, clock: ManualClock
) -> None:
    rules = QueueRules(aging_minutes=60)
    add(registry, clock, "low", priority="low")
    clock.advance(3600)
    add(registry, clock, "normal")
    assert names(registry) == ["normal", "low"]
    assert names(registry, rules) == ["low", "normal"]
    clock.advance(3600)
    add(registry, clock, "high", priority="high")
    assert names(registry, rules)[0] == "low"


def test_a_job_starts_no_earlier_than_it_was_told(registry: Registry, clock: ManualClock) -> None:
    at = clock.now.replace(hour=13)
    add(registry, clock, "later", not_before_at=at)
    add(registry, clock, "now")
    assert claim(registry) == "now"
    assert claim(registry) is None
    with registry.reading() as tx:
        reason = order.obstacle(tx, tx.get(TrainingJob, "later"), rules=QueueRules(), num_running={})
    assert reason == "not before 2026-01-01 13:00:00 UTC"
    clock.now = at
    assert claim(registry) == "later"


def test_a_job_follows_another_only_if_that_ended_well(registry: Registry, clock: ManualClock) -> None:
    add(registry, clock, "first")
    add(registry, clock, "second", after=("first",), priority="high")
    assert claim(registry) == "first"
    assert claim(registry) is None
    with registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "first"), to=JobState.SUCCEEDED, actor="worker")
    assert claim(registry) == "second"


def test_a_job_whose_predecessor_failed_is_cancelled_and_says_so(
    registry: Registry, clock: ManualClock
) -> None:
    add(registry, clock, "first")
    add(registry, clock, "second", after=("first",))
    add(registry, clock, "third", after=("second",))
    with registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "first"), to=JobState.FAILED, actor="worker")
        assert [job.id for job in queue.cancel_followers(tx, actor="sweep")] == ["second", "third"]
        assert tx.get(TrainingJob, "second").note == "it was to follow first, which is failed"


def test_a_job_cannot_follow_one_that_there_is_not(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id="a")
        with pytest.raises(NotFound, match="job-nowhere"):
            queue.submit(tx, make_job(id="b", after=("job-nowhere",)), actor="me")


def test_no_more_jobs_of_a_queue_run_at_once_than_may(registry: Registry, clock: ManualClock) -> None:
    rules = QueueRules(max_running={Priority.LOW: 1})
    add(registry, clock, "low-1", "low-2", priority="low")
    assert claim(registry, rules=rules) == "low-1"
    assert claim(registry, rules=rules) is None
    with registry.reading() as tx:
        reason = order.obstacle(
            tx, tx.get(TrainingJob, "low-2"), rules=rules, num_running=order.num_running_by_queue(tx)
        )
    assert reason == "1 of at most 1 low jobs are running"


def test_a_full_queue_refuses_one_more_and_others_do_not(registry: Registry, clock: ManualClock) -> None:
    rules = QueueRules(max_waiting={Priority.NORMAL: 2})
    add(registry, clock, "a", "b")
    with registry.transaction() as tx:
        with pytest.raises(QueueFull, match="2 jobs wait in normal.*TANDEM_QUEUE__MAX_WAITING"):
            queue.submit(tx, make_job(id="c"), actor="me", rules=rules)
        known, is_new = queue.submit(tx, make_job(id="z", dedupe_key="a"), actor="me", rules=rules)
        assert (known.id, is_new) == ("a", False)
        queue.submit(tx, make_job(id="d", priority="high"), actor="me", rules=rules)
    assert names(registry) == ["d", "a", "b"]


def test_nobody_is_sent_into_a_full_queue_by_another_way(registry: Registry, clock: ManualClock) -> None:
    rules = QueueRules(max_waiting={Priority.NORMAL: 1})
    add(registry, clock, "paused", "failed", "a")
    with registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "paused"), to=JobState.PAUSED, actor="me")
        tx.transition(tx.get(TrainingJob, "failed"), to=JobState.CANCELLED, actor="me")
        queue.submit(tx, make_job(id="low", priority="low"), actor="me")
        for job_id, command in (("paused", Command.RESUME), ("failed", Command.RETRY)):
            with pytest.raises(QueueFull, match="1 jobs wait in normal"):
                commands.give(tx, job_id=job_id, command=command, actor="me", reason="", rules=rules)
        with pytest.raises(QueueFull, match="1 jobs wait in normal"):
            order.set_priority(tx, job_id="low", priority=Priority.NORMAL, actor="me", rules=rules)
        order.set_priority(tx, job_id="a", priority=Priority.NORMAL, actor="me", rules=rules)
        order.set_priority(tx, job_id="paused", priority=Priority.HIGH, actor="me", rules=rules)
        order.set_priority(tx, job_id="a", priority=Priority.LOW, actor="me", rules=rules)
        commands.give(tx, job_id="failed", command=Command.RETRY, actor="me", reason="", rules=rules)
    assert names(registry) == ["failed", "a", "low"]


def test_a_job_tried_again_later_waits_until_then(registry: Registry, clock: ManualClock) -> None:
    add(registry, clock, "a")
    with registry.transaction() as tx:
        found = queue.claim_next(tx, queues=ALL, holder="worker", seconds=60)
        assert found is not None
        queue.record_problem(
            tx,
            found[0],
            kind="killed",
            message="gone",
            can_retry=True,
            actor="worker",
            lease=found[1],
            not_before_at=clock.now.replace(hour=14),
        )
    assert claim(registry) is None
    clock.now = clock.now.replace(hour=14)
    assert claim(registry) == "a"
