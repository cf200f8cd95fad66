import pytest

from registry import leases
from registry.errors import StaleWrite
from registry.records import Lease, TrainingJob
from registry.states import JobState
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job


def take(registry: Registry, *, holder: str) -> Lease | None:
    with registry.transaction() as tx:
        return leases.acquire(tx, resource="gpu", holder=holder, seconds=60)


def test_one_holder_at_a_time(registry: Registry) -> None:
    assert take(registry, holder="first") is not None
    assert take(registry, holder="second") is None


def test_an_expired_lease_passes_on_with_a_higher_token(registry: Registry, clock: ManualClock) -> None:
    first = take(registry, holder="first")
    clock.advance(60)
    second = take(registry, holder="second")
    assert first is not None
    assert second is not None
    assert second.token == first.token + 1


def test_renewal_keeps_it(registry: Registry, clock: ManualClock) -> None:
    lease = take(registry, holder="first")
    assert lease is not None
    clock.advance(50)
    with registry.transaction() as tx:
        lease = leases.renew(tx, lease, seconds=60)
    clock.advance(50)
    assert take(registry, holder="second") is None


def test_a_lease_that_was_given_back_is_free_also_after_the_clock_was_set_back(
    registry: Registry, clock: ManualClock
) -> None:
    first = take(registry, holder="first")
    assert first is not None
    with registry.transaction() as tx:
        leases.release(tx, first)
    clock.advance(-3600)
    assert take(registry, holder="second") is not None


def test_a_holder_that_slept_past_its_lease_cannot_renew_it(registry: Registry, clock: ManualClock) -> None:
    lease = take(registry, holder="first")
    assert lease is not None
    clock.advance(61)
    with registry.transaction() as tx, pytest.raises(StaleWrite, match="no longer holds"):
        leases.renew(tx, lease, seconds=60)


def test_a_late_holder_cannot_write_and_cannot_release_the_next_one(
    registry: Registry, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        job = add_queued_job(tx)
    late = take(registry, holder="late")
    clock.advance(61)
    next_one = take(registry, holder="next")
    assert late is not None
    assert next_one is not None
    with registry.transaction() as tx, pytest.raises(StaleWrite):
        tx.transition(job, to=JobState.RUNNING, actor="late", lease=late)
    with registry.transaction() as tx:
        leases.release(tx, late)
        assert leases.is_held(tx, resource="gpu")
        assert tx.get(TrainingJob, job.id).state is JobState.QUEUED


def test_a_released_lease_is_free_at_once(registry: Registry) -> None:
    lease = take(registry, holder="first")
    assert lease is not None
    with registry.transaction() as tx:
        leases.release(tx, lease)
    assert take(registry, holder="second") is not None


def test_who_holds_a_lease_is_told_until_it_expires(registry: Registry, clock: ManualClock) -> None:
    taken = take(registry, holder="first")
    for seconds, lease in ((0, taken), (59, taken), (1, None)):
        clock.advance(seconds)
        with registry.reading() as tx:
            assert leases.holding(tx, resource="gpu") == lease
            assert leases.is_held(tx, resource="gpu") is (lease is not None)
