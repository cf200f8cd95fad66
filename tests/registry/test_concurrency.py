"""Many at once, on both databases: one winner, growing tokens, and nothing but the registry's own errors."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from registry import leases
from registry.errors import RegistryUnavailable
from registry.records import Dataset, TrainingJob
from registry.states import JobState
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job, make_dataset

Open = Callable[[], Registry]

NUM_PROCESSES, NUM_JOBS, NUM_LEASES = 4, 20, 10

# Claims until nothing waits; takes and gives back one lease again and again. Says what it got.
PROCESS = f"""
import sys
from registry import leases, queue
from registry.states import JobState, Priority
from registry.store import Registry

registry, name = Registry(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
while True:
    with registry.transaction() as tx:
        claimed = queue.claim_next(tx, queues=tuple(Priority), holder=name, seconds=60)
    if claimed is None:
        break
    print("job", claimed[0].id)
    with registry.transaction() as tx:
        tx.transition(claimed[0], to=JobState.SUCCEEDED, lease=claimed[1], actor=name)
num_held = 0
while num_held < {NUM_LEASES}:
    with registry.transaction() as tx:
        lease = leases.acquire(tx, resource="gpu", holder=name, seconds=60)
    if lease is not None:
        num_held += 1
        print("token", lease.token)
        with registry.transaction() as tx:
            leases.release(tx, lease)
"""


def test_of_many_that_want_a_lease_one_gets_it_and_tokens_grow(
    open_registry: Open, clock: ManualClock
) -> None:
    num_holders = 6
    registries = [open_registry() for _ in range(num_holders)]
    start = threading.Barrier(num_holders)

    def take(registry: Registry) -> int | None:
        start.wait()
        with registry.transaction() as tx:
            lease = leases.acquire(tx, resource="gpu", holder="someone", seconds=60)
        return None if lease is None else lease.token

    winners = []
    with ThreadPoolExecutor(num_holders) as pool:
        for _ in range(5):
            winners.append([token for token in pool.map(take, registries) if token is not None])
            clock.advance(60)
    assert winners == [[1], [2], [3], [4], [5]]


@pytest.mark.integration
def test_processes_share_out_jobs_and_a_lease_without_one_of_them_twice(open_registry: Open) -> None:
    registry = open_registry()
    with registry.transaction() as tx:
        for number in range(NUM_JOBS):
            add_queued_job(tx, id=f"job-{number:02d}")
    lines = run_together(registry.engine.url.render_as_string(hide_password=False))
    assert sorted(value for kind, value in lines if kind == "job") == [
        f"job-{n:02d}" for n in range(NUM_JOBS)
    ]
    tokens = sorted(int(value) for kind, value in lines if kind == "token")
    assert tokens == list(range(1, NUM_PROCESSES * NUM_LEASES + 1))
    with registry.reading() as tx:
        assert len(tx.find(TrainingJob, state=JobState.SUCCEEDED)) == NUM_JOBS


def run_together(url: str) -> list[list[str]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, url, f"process-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(NUM_PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * NUM_PROCESSES
    return [line.split() for output in outputs for line in output.splitlines()]


def test_who_cannot_write_in_time_is_told_so_and_nothing_of_theirs_is_saved(open_registry: Open) -> None:
    url = open_registry().engine.url.render_as_string(hide_password=False)
    num_writers = 8
    start = threading.Barrier(num_writers)

    def write(number: int) -> bool:
        registry = Registry(url, busy_timeout_ms=1)
        start.wait()
        try:
            with registry.transaction() as tx:
                for row in range(20):
                    tx.add(make_dataset(id=f"ds-{number}-{row}", content_sha256=f"{number}-{row}"), actor="t")
        except RegistryUnavailable:
            return False
        finally:
            registry.engine.dispose()
        return True

    with ThreadPoolExecutor(num_writers) as pool:
        num_saved = sum(pool.map(write, range(num_writers)))
    assert num_saved >= 1
    with open_registry().reading() as tx:
        assert len(tx.find(Dataset)) == 20 * num_saved


def test_no_connection_left_is_said_and_not_thrown(open_registry: Open) -> None:
    url = open_registry().engine.url.render_as_string(hide_password=False)
    registry = Registry(url, busy_timeout_ms=50)
    pool = registry.engine.pool
    held = [pool.connect() for _ in range(15)]
    with pytest.raises(RegistryUnavailable, match="cannot be used"), registry.reading():
        pass
    for connection in held:
        connection.close()
    registry.engine.dispose()


@pytest.mark.parametrize(
    "open_registry", [pytest.param("postgresql", marks=pytest.mark.integration)], indirect=True
)
def test_a_connection_that_the_server_ends_is_said_and_the_next_one_works(open_registry: Open) -> None:
    registry, other = open_registry(), open_registry()
    with pytest.raises(RegistryUnavailable, match="cannot be used"), registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        number = tx.connection.scalar(text("SELECT pg_backend_pid()"))
        with other.reading() as killer:
            killer.connection.execute(text("SELECT pg_terminate_backend(:number)"), {"number": number})
        tx.find(Dataset)
    with registry.transaction() as tx:
        assert tx.find(Dataset) == []


@pytest.mark.parametrize(
    "open_registry", [pytest.param("postgresql", marks=pytest.mark.integration)], indirect=True
)
def test_a_deadlock_with_a_stranger_is_said_and_undone(open_registry: Open) -> None:
    """Our own writers take turns; somebody with psql does not."""
    registry, stranger = open_registry(), open_registry()
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        tx.add(make_dataset(id="ds-2", content_sha256="2"), actor="me")
    rename = text("UPDATE datasets SET name = 'theirs' WHERE id = :id")
    has_both = threading.Event()

    def interfere() -> None:
        with stranger.engine.connect() as connection:
            connection.execution_options(tandem_read_only=False)
            connection.connection.cursor().execute("SET deadlock_timeout = '10s'")
            raw = connection.connection.cursor()
            raw.execute("BEGIN")
            raw.execute("UPDATE datasets SET name = 'theirs' WHERE id = 'ds-2'")
            has_both.set()
            raw.execute("UPDATE datasets SET name = 'theirs' WHERE id = 'ds-1'")
            connection.connection.commit()

    thread = threading.Thread(target=interfere)
    with pytest.raises(RegistryUnavailable, match="deadlock"), registry.transaction() as tx:
        tx.connection.execute(rename, {"id": "ds-1"})
        thread.start()
        assert has_both.wait(10)
        tx.connection.execute(rename, {"id": "ds-2"})
    thread.join()
    with registry.reading() as tx:
        assert {dataset.name for dataset in tx.find(Dataset)} == {"theirs"}
