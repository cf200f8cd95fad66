"""What is done for each job costs as much after years as at first, by the steps of SQLite's machine."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from registry import history, lineage, queue
from registry.states import JobState, Priority
from registry.store import Registry, Transaction
from registry.tables import jobs
from registry.testing import START, make_checkpoint, make_dataset, make_job, make_registry

Work = Callable[[Transaction], object]

WORK: dict[str, Work] = {
    "claim": lambda tx: queue.claim_next(tx, queues=tuple(Priority), holder="w", seconds=60),
    "look": lambda tx: queue.look(tx, queues=tuple(Priority)),
    "submit": lambda tx: queue.submit(tx, make_job(id="job-new"), actor="me"),
    "tip": lambda tx: lineage.parent_for(tx, wish="tip"),
    "past runs": lambda tx: history.past_runs(tx, limit=5),
    "ended lately": lambda tx: history.ended_jobs(tx, states=[JobState.SUCCEEDED], since=tx.now),
}


def fill(registry: Registry, *, num_jobs: int) -> None:
    """As many finished jobs as waiting ones."""
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="test")
        tx.add(make_checkpoint(state="accepted"), actor="test")
        rows = []
        for number in range(num_jobs):
            common = {"submitted_at": START, "queued_at": START, "place": number}
            done = make_job(id=f"job-done-{number}", state="succeeded").model_dump(mode="json")
            done |= {"final_checkpoint_id": make_checkpoint().id}
            done |= {"finished_at": START - timedelta(days=1, seconds=number)}
            waits = make_job(id=f"job-waits-{number}", state="queued").model_dump(mode="json")
            rows += [done | common, waits | common | {"finished_at": None}]
        tx.connection.execute(insert(jobs), rows)


def num_steps(directory: Path, *, num_jobs: int, work: Work) -> int:
    directory.mkdir()
    registry = make_registry(directory)
    fill(registry, num_jobs=num_jobs)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with registry.transaction() as tx:
        connection = tx.connection.connection.dbapi_connection
        assert connection is not None
        connection.set_progress_handler(count, 1)
        work(tx)
        connection.set_progress_handler(None, 1)
    registry.engine.dispose()
    return steps


@pytest.mark.parametrize("name", WORK)
def test_a_hundred_times_as_many_jobs_cost_the_same(tmp_path: Path, name: str) -> None:
    few = num_steps(tmp_path / "few", num_jobs=20, work=WORK[name])
    many = num_steps(tmp_path / "many", num_jobs=2000, work=WORK[name])
    assert 0 < many < 1.5 * few + 20
