from datetime import timedelta

from registry.store import Registry
from registry.testing import ManualClock, add_queued_job
from workers.outlook import look_ahead


def test_a_job_that_is_held_back_says_until_when_though_nothing_tells_when_it_begins(
    registry: Registry, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id="now")
        add_queued_job(tx, id="later", dedupe_key="later", not_before_at=clock() + timedelta(minutes=90))
    with registry.reading() as tx:
        lines = look_ahead(tx).queued(priority="normal", tx=tx)
    said = {line.job_id: line.start_unknown_because for line in lines}
    assert said["now"] == "nothing runs, so nothing says when it will begin"
    assert (
        said["later"]
        == "not before 2026-01-01 13:30:00 UTC; nothing runs, so nothing says when it will begin"
    )
