"""The whole loop across two hosts: trained on here, judged there, deployed by ssh, served there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from deploy.target import LocalTarget
from inference.tiny import build_tiny_model
from registry import lineage
from registry.records import Checkpoint, Deployment, Evaluation
from registry.states import DeploymentState, EvaluationState
from tasks.testing import wait_for
from tests.hosts.lab import Lab, write_rows

pytestmark = [pytest.mark.integration, pytest.mark.hosts, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("hosts"))
    lab.start()
    yield lab
    lab.stop()


def active(lab: Lab) -> Deployment | None:
    with lab.registry().reading() as tx:
        return lineage.active_deployment(tx)


def answer(ended: object) -> str:
    assert ended.returncode == 0, ended.stdout + ended.stderr  # type: ignore[attr-defined]
    return str(ended.stdout)  # type: ignore[attr-defined]


def test_a_file_submitted_on_one_host_is_served_on_the_other(lab: Lab) -> None:
    suite = write_rows(lab.root / "suite.jsonl", num_rows=60, seed=1)
    answer(lab.tandem("suite", "build", str(suite)))
    model = build_tiny_model(lab.root / "base", seed=1)
    base = json.loads(answer(lab.tandem("checkpoint", "import", str(model), "--as-base", "--json")))
    wait_for(lambda: active(lab), seconds=120, message="the base model is served")
    assert lab.answer() == (200, lab.current())
    data = write_rows(lab.root / "data.jsonl", num_rows=600, seed=2)
    answer(lab.tandem("submit", str(data), "--priority", "high"))
    wait_for(
        lambda: (found := active(lab)) is not None and found.checkpoint_id != base["id"],
        seconds=240,
        message="the trained model is served",
    )
    served = active(lab)
    assert served is not None
    assert lab.current() == served.id
    assert LocalTarget(lab.releases).verify(served.id).weights_sha256 == served.weights_sha256
    assert lab.answer() == (200, served.id)


def test_the_intelligence_host_read_no_registry_and_no_path_of_the_other(lab: Lab) -> None:
    assert not (lab.intel_home / "tandem.db").exists()
    with lab.registry().reading() as tx:
        evaluations = tx.find(Evaluation, state=EvaluationState.ANSWERED)
        checkpoints = {row.id: row for row in tx.find(Checkpoint)}
    assert len(evaluations) >= 2
    assert {evaluation.host for evaluation in evaluations} == {"intel"}
    cached = {path.name for path in (lab.intel_home / "models" / "cache").iterdir() if path.is_dir()}
    assert {checkpoints[one.checkpoint_id].weights_sha256 for one in evaluations} <= cached
    assert list((lab.intel_home / "models" / "cache").rglob("*training_state*")) == []


def test_rollback_and_deploy_by_command_reach_the_other_host(lab: Lab) -> None:
    newest = active(lab)
    assert newest is not None
    answer(lab.tandem("deploy", "rollback"))
    before = active(lab)
    assert before is not None
    assert before.generation < newest.generation
    assert (lab.current(), lab.answer()) == (before.id, (200, before.id))
    answer(lab.tandem("deploy", "now", newest.checkpoint_id))
    again = active(lab)
    assert again is not None
    assert again.generation > newest.generation
    assert (lab.current(), lab.answer()) == (again.id, (200, again.id))
    listed = json.loads(answer(lab.tandem("deploy", "list", "--json")))
    assert [row["state"] for row in listed].count(str(DeploymentState.ACTIVE)) == 1
    # The same weights as a release before: linked, not sent or stored again.
    files = [lab.releases / name / "model.safetensors" for name in (newest.id, again.id)]
    assert files[0].stat().st_size == files[1].stat().st_size


def test_the_doctor_on_each_host_finds_both_in_order(lab: Lab) -> None:
    lab.run("intel", sys.executable, "-m", "tasks.cli", "doctor", "--json")
    findings = {row["check"]: row for row in json.loads(lab.tandem("doctor", "--json").stdout)}
    host = lab.network.intel_address
    for check in ("gate", "clock", "rsync", "version", "data key"):
        assert findings[f"{host} {check}"]["state"] == "ok", findings[f"{host} {check}"]
    for check in ("redis", "redis memory", "redis file", "clock", "versions", "registry", "rsync", "ssh"):
        assert findings[check]["state"] == "ok", findings[check]
    assert findings["redis link"]["state"] == "warning"
    # The lab's far disk is a small one on purpose: the doctor must say so.
    assert findings[f"{host} disk"]["state"] == "failed"
