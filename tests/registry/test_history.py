"""Events come once each and in order; past runs count only the time at work."""

import pytest

from registry import history, queue
from registry.errors import NotFound
from registry.history import EventCursor
from registry.records import Event
from registry.states import JobState, Priority
from registry.store import Registry, Transaction
from registry.tables import events
from registry.testing import START, ManualClock, add_queued_job, make_checkpoint, make_dataset, make_job


def log(tx: Transaction, *subjects: str) -> None:
    for subject in subjects:
        tx.log(kind="Test", subject_id=subject, before=None, after="added", actor="test")


def log_as(tx: Transaction, number: int) -> None:
    """An event whose number was given before those that are visible already: PostgreSQL does that."""
    values = {"at": START, "actor": "a", "kind": "Test", "subject_id": str(number), "after": "x"}
    tx.connection.execute(events.insert().values(id=number, before=None, reason="", data={}, **values))


def ids(found: list[Event]) -> list[int | None]:
    return [event.id for event in found]


def test_the_newest_come_oldest_first_and_may_be_filtered(registry: Registry, clock: ManualClock) -> None:
    with registry.transaction() as tx:
        log(tx, "a", "b", "a", "b")
    clock.advance(10)
    with registry.transaction() as tx:
        log(tx, "a")
    with registry.reading() as tx:
        assert ids(history.newest_events(tx, limit=2)) == [4, 5]
        assert ids(history.newest_events(tx, subjects=["b"])) == [2, 4]
        assert ids(history.newest_events(tx, after_id=3)) == [4, 5]
        assert ids(history.newest_events(tx, since=clock())) == [5]


def test_a_cursor_gives_each_event_once(registry: Registry) -> None:
    seen: list[int | None] = []
    with registry.transaction() as tx:
        log(tx, "a", "b")
        cursor = history.end_of_events(tx)
    for subjects in (("c",), (), ("d", "e", "f"), ("g",)):
        with registry.transaction() as tx:
            log(tx, *subjects)
        with registry.reading() as tx:
            found, cursor = history.next_events(tx, cursor)
        seen += ids(found)
    assert seen == [3, 4, 5, 6, 7]


def test_more_events_than_a_page_come_page_by_page(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAGE", 3)
    with registry.transaction() as tx:
        log(tx, *"abcdefgh")
    cursor, seen = EventCursor(), []
    for _ in range(3):
        with registry.reading() as tx:
            found, cursor = history.next_events(tx, cursor)
        seen += ids(found)
    assert seen == list(range(1, 9))


def test_an_event_that_becomes_visible_after_a_later_one_is_not_skipped(registry: Registry) -> None:
    with registry.transaction() as tx:
        log_as(tx, 1)
        log_as(tx, 4)
        cursor = history.end_of_events(tx)
    assert cursor.gaps == (2, 3)
    with registry.transaction() as tx:
        log_as(tx, 3)
        log_as(tx, 6)
    with registry.transaction() as tx:
        first, cursor = history.next_events(tx, cursor)
        log_as(tx, 2)
        log_as(tx, 5)
        second, cursor = history.next_events(tx, cursor)
        third, cursor = history.next_events(tx, cursor)
    assert (ids(first), ids(second), ids(third)) == ([3, 6], [2, 5], [])
    assert cursor == EventCursor(last_id=6, gaps=())


def test_the_gaps_that_are_remembered_are_bounded(registry: Registry) -> None:
    with registry.transaction() as tx:
        log_as(tx, 1)
        log_as(tx, 1_000_000)
        _, cursor = history.next_events(tx, EventCursor())
    assert cursor.last_id == 1_000_000
    assert len(cursor.gaps) == history.MAX_GAPS


def test_a_job_is_told_with_its_checkpoints(registry: Registry) -> None:
    with registry.transaction() as tx:
        job = add_queued_job(tx)
        tx.add(make_checkpoint(job_id=job.id), actor="test")
    with registry.reading() as tx:
        assert history.subjects_of_job(tx, job_id=job.id) == ["job-aaaaaa", "ckpt-aaaaaa-00000010"]
        with pytest.raises(NotFound):
            history.subjects_of_job(tx, job_id="job-none")


def test_a_past_run_counts_rows_once_an_epoch_and_only_the_time_at_work(
    registry: Registry, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        job = add_queued_job(tx, hyperparameters={"num_epochs": 3})
    for seconds in (20, 30):
        clock.advance(1000)  # waits
        with registry.transaction() as tx:
            claimed = queue.claim_next(tx, queues=tuple(Priority), holder="w", seconds=60)
            assert claimed is not None
            job, lease, _ = claimed
        clock.advance(seconds)
        with registry.transaction() as tx:
            if seconds == 20:
                queue.put_back(tx, job, lease=lease, actor="w", reason="drained")
            else:
                tx.log(
                    kind="TrainingJob", subject_id=job.id, before="running", after="stop asked for", actor="x"
                )
                tx.transition(job, to=JobState.SUCCEEDED, actor="w", finished_at=tx.now)
    with registry.reading() as tx:
        (run,) = history.past_runs(tx, limit=20)
    assert (run.num_rows, run.seconds) == (30, 50)


def test_a_job_that_never_ran_is_no_past_run(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="test")
        tx.add(make_job(state=JobState.SUCCEEDED, finished_at=START), actor="test")
    with registry.reading() as tx:
        assert history.past_runs(tx, limit=20) == []
