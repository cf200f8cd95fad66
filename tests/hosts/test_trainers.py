"""Two training hosts on one PostgreSQL: they share the queue, and each job is trained once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.tiny import build_tiny_model
from registry.manifests import verify
from registry.records import Checkpoint, Event, TrainingJob
from registry.states import JobState
from registry.testing_postgresql import postgresql_server
from tasks.testing import wait_for
from tests.hosts.lab import write_rows
from tests.hosts.several import TRAIN
from tests.hosts.trainers import FURTHER, TwoTrainers, drop_into_inbox

pytestmark = [pytest.mark.integration, pytest.mark.hosts, pytest.mark.timeout(580)]

NUM_JOBS = 8
PASSWORD = "hush-hush"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoTrainers]:
    with postgresql_server(password=PASSWORD) as url:
        root = tmp_path_factory.mktemp("trainers")
        hosts = TwoTrainers(root, evaluators=(FURTHER,), url=url, password=PASSWORD)
        hosts.start()
        try:
            model = build_tiny_model(root / "base", seed=99)
            hosts.tandem(TRAIN, "checkpoint", "import", str(model), "--as-base")
            yield hosts
        finally:
            hosts.stop()


def jobs(hosts: TwoTrainers) -> list[TrainingJob]:
    with hosts.registry().reading() as tx:
        return tx.find(TrainingJob)


def starts(hosts: TwoTrainers) -> list[tuple[str, str]]:
    """Every time that a job began to run: which one, and on which host."""
    with hosts.registry().reading() as tx:
        begun = [event for event in tx.find(Event, kind="TrainingJob") if event.after == JobState.RUNNING]
    return [(event.subject_id, event.actor.partition(":")[0]) for event in begun]


def test_both_hosts_train_and_no_job_is_trained_twice(hosts: TwoTrainers) -> None:
    for number in range(NUM_JOBS):
        file = write_rows(hosts.root / f"words-{number}.jsonl", num_rows=200, seed=number)
        drop_into_inbox(file, home=hosts.home(TRAIN))
    wait_for(
        lambda: [job.state for job in jobs(hosts)].count(JobState.SUCCEEDED) == NUM_JOBS,
        seconds=420,
        message=f"{NUM_JOBS} jobs are done",
    )
    begun = starts(hosts)
    assert len({job_id for job_id, _ in begun}) == len(begun) == NUM_JOBS, begun
    shares = Counter(host for _, host in begun)
    assert set(shares) == {TRAIN, FURTHER}, shares


def test_what_the_further_host_made_lies_where_the_first_one_finds_it(hosts: TwoTrainers) -> None:
    made_there = {job_id for job_id, host in starts(hosts) if host == FURTHER}
    with hosts.registry().reading() as tx:
        found = [one for one in tx.find(Checkpoint) if one.job_id in made_there]
    assert len(found) == len(made_there)
    for checkpoint in found:
        assert checkpoint.path.startswith(str(hosts.home(TRAIN)))
        assert verify(Path(checkpoint.path)).weights_sha256 == checkpoint.weights_sha256
