from datetime import timedelta

from registry import asks
from registry.store import Registry
from registry.testing import ManualClock

WHAT = {"kind": "evaluation", "subject_id": "eval-1"}


def is_due(registry: Registry) -> bool:
    with registry.reading() as tx:
        return asks.is_due(tx, **WHAT, retry_after_seconds=60)


def put(registry: Registry) -> int:
    with registry.transaction() as tx:
        return asks.put(tx, **WHAT).num_asked


def test_a_question_is_put_once_and_again_when_no_answer_came(registry: Registry, clock: ManualClock) -> None:
    assert is_due(registry)
    assert put(registry) == 1
    clock.advance(59)
    assert not is_due(registry)
    clock.advance(1)
    assert is_due(registry)
    assert put(registry) == 2


def test_an_answered_question_is_not_put_again(registry: Registry, clock: ManualClock) -> None:
    put(registry)
    with registry.transaction() as tx:
        asks.settle(tx, **WHAT)
    clock.advance(3600)
    assert not is_due(registry)


def test_how_often_and_when_is_known(registry: Registry, clock: ManualClock) -> None:
    with registry.reading() as tx:
        assert (asks.num_asked(tx, **WHAT), asks.last_put(tx, **WHAT)) == (0, None)
    put(registry)
    clock.advance(5)
    put(registry)
    with registry.reading() as tx:
        assert (asks.num_asked(tx, **WHAT), asks.last_put(tx, **WHAT)) == (2, clock.now)


def test_a_question_that_someone_is_at_is_not_put_again_meanwhile(
    registry: Registry, clock: ManualClock
) -> None:
    put(registry)
    clock.advance(59)
    with registry.transaction() as tx:
        asks.renew(tx, **WHAT)
    clock.advance(59)
    assert not is_due(registry)
    clock.advance(1)
    assert is_due(registry)
    assert put(registry) == 2


def test_nobody_can_be_at_a_question_that_was_never_put_or_is_answered(
    registry: Registry, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        asks.renew(tx, **WHAT)
        assert asks.last_put(tx, **WHAT) is None
    put(registry)
    with registry.transaction() as tx:
        asks.settle(tx, **WHAT)
        clock.advance(5)
        asks.renew(tx, **WHAT)
        assert asks.last_put(tx, **WHAT) == clock.now - timedelta(seconds=5)


def test_under_way_is_what_was_asked_lately_and_neither_answered_nor_postponed(
    registry: Registry, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        asks.put(tx, kind="evaluation", subject_id="lost")
    clock.advance(50)
    with registry.transaction() as tx:
        for name in ("settled", "postponed", "asked"):
            asks.put(tx, kind="evaluation", subject_id=name)
        asks.put(tx, kind="verdict", subject_id="asked")
        asks.settle(tx, kind="evaluation", subject_id="settled")
        asks.postpone(tx, kind="evaluation", subject_id="postponed", seconds=10, retry_after_seconds=60)
        assert asks.num_under_way(tx, kind="evaluation", within_seconds=50) == 1
