import threading
from collections.abc import Callable

import pytest

from registry import hosts, queue
from registry.order import QueueRules
from registry.records import Lease, TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job, make_checkpoint, make_job

ALL = tuple(Priority)


def claim(registry: Registry, holder: str = "worker") -> tuple[TrainingJob, Lease] | None:
    with registry.transaction() as tx:
        return queue.claim_next(tx, queues=ALL, holder=holder, seconds=60)


def test_jobs_run_high_normal_low_whatever_the_order_of_submission(
    registry: Registry, clock: ManualClock
) -> None:
    for priority in ("low", "normal", "high"):
        with registry.transaction() as tx:
            add_queued_job(tx, id=f"job-{priority}", priority=priority)
        clock.advance(1)
    claimed = [claim(registry) for _ in range(3)]
    assert [found[0].id for found in claimed if found] == ["job-high", "job-normal", "job-low"]
    assert claim(registry) is None


def test_within_a_queue_first_come_first_served(registry: Registry, clock: ManualClock) -> None:
    for name in ("job-b", "job-a", "job-c"):
        with registry.transaction() as tx:
            add_queued_job(tx, id=name)
        clock.advance(1)
    with registry.reading() as tx:
        assert [job.id for job in queue.waiting(tx)] == ["job-b", "job-a", "job-c"]


def test_a_worker_takes_only_from_its_queues(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-low", priority="low")
        assert queue.claim_next(tx, queues=(Priority.HIGH,), holder="w", seconds=60) is None


def test_the_same_submission_gives_the_same_job(registry: Registry) -> None:
    with registry.transaction() as tx:
        first = add_queued_job(tx, id="job-a", dedupe_key="k")
        again, is_new = queue.submit(tx, make_job(id="job-b", dedupe_key="k"), actor="test")
    assert again.id == first.id
    assert not is_new


def test_a_dead_workers_job_is_put_back_three_times_then_failed_with_its_story(
    registry: Registry, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    for _ in range(3):
        assert claim(registry) is not None
        clock.advance(61)
        with registry.transaction() as tx:
            queue.requeue_abandoned(tx, actor="sweep")
    with registry.reading() as tx:
        job = tx.get(TrainingJob, "job-aaaaaa")
    assert job.state is JobState.FAILED
    assert job.attempts == 3
    assert {problem.kind for problem in job.problems} == {"worker_lost"}
    assert job.finished_at is not None


def test_a_job_whose_lease_is_renewed_is_not_abandoned(registry: Registry, clock: ManualClock) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    claim(registry)
    clock.advance(59)
    with registry.transaction() as tx:
        assert queue.requeue_abandoned(tx, actor="sweep") == []


def test_a_job_put_back_in_good_order_keeps_its_place_and_its_attempts(
    registry: Registry, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-a")
    clock.advance(1)
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-b")
    claimed = claim(registry)
    assert claimed is not None
    with registry.transaction() as tx:
        queue.put_back(tx, claimed[0], lease=claimed[1], actor="w", reason="shutdown")
    again = claim(registry)
    assert again is not None
    assert again[0].id == "job-a"
    assert again[0].attempts == 0


def test_a_failure_that_a_retry_cannot_mend_is_final_at_once(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    claimed = claim(registry)
    assert claimed is not None
    with registry.transaction() as tx:
        job = queue.record_problem(
            tx,
            claimed[0],
            kind="diverged",
            message="loss is NaN",
            can_retry=False,
            actor="w",
            lease=claimed[1],
        )
    assert job.state is JobState.FAILED


@pytest.mark.parametrize("num_workers", [2, 8])
def test_however_many_workers_ask_at_once_one_gets_the_job(
    open_registry: Callable[[], Registry], num_workers: int
) -> None:
    with open_registry().transaction() as tx:
        add_queued_job(tx)
    found: list[object] = []
    start = threading.Barrier(num_workers)

    def ask(name: str) -> None:
        registry = open_registry()
        start.wait()
        found.append(claim(registry, name))

    threads = [threading.Thread(target=ask, args=(f"worker-{number}",)) for number in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(item is not None for item in found) == 1
    assert len(found) == num_workers


def test_many_jobs_are_shared_out_among_many_workers_each_once(
    open_registry: Callable[[], Registry],
) -> None:
    with open_registry().transaction() as tx:
        for number in range(24):
            add_queued_job(tx, id=f"job-{number:02d}")
    found: list[str] = []
    tokens: list[int] = []

    def work(name: str) -> None:
        registry = open_registry()
        while (claimed := claim(registry, name)) is not None:
            job, lease, _ = claimed
            with registry.transaction() as tx:
                tx.transition(job, to=JobState.SUCCEEDED, lease=lease, actor=name)
            found.append(job.id)
            tokens.append(lease.token)

    threads = [threading.Thread(target=work, args=(f"worker-{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"job-{number:02d}" for number in range(24)]
    assert set(tokens) == {1}


def look(registry: Registry, *, host: str = "", rules: QueueRules | None = None) -> queue.Seen:
    with registry.reading() as tx:
        found = queue.look(tx, queues=ALL, host=host, rules=rules)
    assert found is not None
    return found


def claim_seen(
    registry: Registry, seen: queue.Seen, *, host: str = "", rules: QueueRules | None = None
) -> queue.Claimed | None:
    with registry.transaction() as tx:
        return queue.claim_next(
            tx, queues=ALL, holder="worker", seconds=60, host=host, rules=rules, seen=seen
        )


def test_what_was_seen_is_claimed_with_all_that_the_look_found(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
        add_queued_job(tx)
    seen = look(registry)
    claimed = claim_seen(registry, seen)
    assert claimed is not None
    assert claimed.job.id == seen.job.id
    assert claimed.sources == seen.sources is not None
    assert claimed.job.parent_checkpoint_id == "base-aaaaaa"
    assert claim_seen(registry, seen) is None  # it runs by now


def test_a_look_is_refused_where_the_host_was_drained_since(registry: Registry) -> None:
    with registry.transaction() as tx:
        hosts.saw(tx, name="big", role="train")
        add_queued_job(tx)
    seen = look(registry, host="big")
    with registry.transaction() as tx:
        hosts.drain(tx, name="big", actor="me")
    assert claim_seen(registry, seen, host="big") is None


def test_a_look_is_refused_where_as_many_run_by_now_as_may(open_registry: Callable[[], Registry]) -> None:
    registry, other = open_registry(), open_registry()
    rules = QueueRules(max_running={Priority.NORMAL: 1})
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-a")
        add_queued_job(tx, id="job-b")
    seen = look(registry, rules=rules)
    first = claim_seen(other, look(other, rules=rules), rules=rules)
    assert first is not None
    assert claim_seen(registry, seen, rules=rules) is None


def test_what_was_written_elsewhere_about_another_thing_only_makes_the_claim_look_again(
    open_registry: Callable[[], Registry],
) -> None:
    registry, other = open_registry(), open_registry()
    with registry.transaction() as tx:
        add_queued_job(tx)
    seen = look(registry)
    with other.transaction() as tx:
        hosts.saw(tx, name="small", role="train")
    claimed = claim_seen(registry, seen)
    assert claimed is not None
    assert claimed.job.id == seen.job.id
