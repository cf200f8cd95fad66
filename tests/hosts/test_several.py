"""Several intelligence hosts: they join by one command, share the work, and stand in for each other."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator

import pytest

from inference.tiny import build_tiny_model
from registry.records import Checkpoint, Evaluation
from registry.states import EvaluationState
from tasks.testing import wait_for
from tests.hosts.lab import write_rows
from tests.hosts.several import TRAIN, SeveralHosts

pytestmark = [pytest.mark.integration, pytest.mark.hosts, pytest.mark.timeout(580)]

FIRST, SECOND = "intel-1", "intel-2"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeveralHosts]:
    hosts = SeveralHosts(tmp_path_factory.mktemp("several"), evaluators=(FIRST, SECOND))
    hosts.start()
    try:
        suite = write_rows(hosts.root / "suite.jsonl", num_rows=60, seed=1)
        hosts.tandem(TRAIN, "suite", "build", str(suite))
        model = build_tiny_model(hosts.root / "base", seed=99)
        hosts.tandem(TRAIN, "checkpoint", "import", str(model), "--as-base")
        yield hosts
    finally:
        hosts.stop()


def bring(hosts: SeveralHosts, seeds: range) -> list[str]:
    """New models to evaluate; their checkpoints."""
    models = [build_tiny_model(hosts.root / f"model-{seed}", seed=seed) for seed in seeds]
    ended = hosts.run(TRAIN, "tests.hosts.importer", *map(str, models))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.split()


def answered(hosts: SeveralHosts, checkpoint_ids: list[str]) -> dict[str, Evaluation]:
    """The answers that were recorded so far, by what they are of."""
    with hosts.registry().reading() as tx:
        found = tx.find(Evaluation, state=EvaluationState.ANSWERED)
    return {row.checkpoint_id: row for row in found if row.checkpoint_id in checkpoint_ids}


def await_answers(hosts: SeveralHosts, checkpoint_ids: list[str], *, seconds: float) -> dict[str, Evaluation]:
    wait_for(
        lambda: len(answered(hosts, checkpoint_ids)) == len(checkpoint_ids),
        seconds=seconds,
        message=f"{checkpoint_ids} are answered",
    )
    return answered(hosts, checkpoint_ids)


def weights_of(hosts: SeveralHosts, checkpoint_id: str) -> str:
    with hosts.registry().reading() as tx:
        return tx.get(Checkpoint, checkpoint_id).weights_sha256


def test_two_hosts_share_the_work_and_each_candidate_goes_to_one(hosts: SeveralHosts) -> None:
    candidates = bring(hosts, range(1, 9))
    answers = await_answers(hosts, candidates, seconds=240)
    shares = Counter(answer.host for answer in answers.values())
    assert set(shares) == {FIRST, SECOND}
    assert min(shares.values()) >= 2, shares
    for checkpoint_id, answer in answers.items():
        weights = weights_of(hosts, checkpoint_id)
        assert [host for host in (FIRST, SECOND) if weights in hosts.cached(host)] == [answer.host]


def test_the_doctor_knows_both_by_their_names(hosts: SeveralHosts) -> None:
    hosts.run(SECOND, "tasks.cli", "doctor", "--json")
    said = hosts.run(TRAIN, "tasks.cli", "doctor", "--json").stdout
    findings = {row["check"]: row for row in json.loads(said)}
    for host in (FIRST, SECOND):
        for check in ("gate", "name", "clock", "rsync", "version", "data key"):
            assert findings[f"{host} {check}"]["state"] == "ok", findings[f"{host} {check}"]
    assert findings["versions"]["state"] == "ok", findings["versions"]


def test_what_a_vanished_host_took_the_other_one_does(hosts: SeveralHosts) -> None:
    models = [build_tiny_model(hosts.root / f"model-{seed}", seed=seed) for seed in range(11, 17)]
    bringing = hosts.start_module(TRAIN, "tests.hosts.importer", *map(str, models), log="importer.log")
    wait_for(lambda: hosts.under_way(SECOND) > 0, seconds=120, message=f"{SECOND} is at work")
    hosts.star.drop(SECOND)
    try:
        assert bringing.wait(timeout=120) == 0
        candidates = (hosts.root / "importer.log").read_text().split()
        assert len(candidates) == len(models)
        answers = await_answers(hosts, candidates, seconds=300)
    finally:
        hosts.star.heal(SECOND)
    assert Counter(answer.host for answer in answers.values())[FIRST] >= len(models) - 1


def test_a_host_that_came_back_takes_its_share_again(hosts: SeveralHosts) -> None:
    seeds = itertools.count(21, 3)

    def works_again() -> bool:
        first = next(seeds)
        answers = await_answers(hosts, bring(hosts, range(first, first + 3)), seconds=120)
        return SECOND in {answer.host for answer in answers.values()}

    # TCP itself may be silent for as long after an outage as that lasted.
    wait_for(works_again, seconds=240, message=f"{SECOND} works again")
