"""What `checkpoint show` says of a verdict and of a test."""

import json

import numpy as np
from typer.testing import CliRunner

from intelligence.accuracy import report
from intelligence.regression import judge
from registry import accuracy, judgements
from registry.messages import AccuracyLimits, AccuracyRequest, RegressionLimits, RegressionRequest
from registry.states import CheckpointState, EvaluationState
from registry.store import Registry
from registry.testing import START, make_checkpoint, make_evaluation, make_evidence, make_suite
from tasks.cli.main import cli

NUM_ROWS = 200
TAGS = [("rhymes",) if place % 4 == 0 else ("sums",) for place in range(NUM_ROWS)]


def judge_one(registry: Registry) -> None:
    losses = np.random.default_rng(0).gamma(2.0, 0.5, NUM_ROWS)
    is_worse = np.array([tag == ("rhymes",) for tag in TAGS])
    first = make_evidence("first", losses=losses)
    base = make_evidence("base", losses=losses * 1.01)
    new = make_evidence(
        "new",
        losses=np.where(is_worse, 1.5 * losses, losses),
        correct=[place > 2 for place in range(NUM_ROWS)],
        tags=TAGS,
    )
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for side in (first, base, new):
            tx.add(make_checkpoint(id=side.checkpoint_id, state=CheckpointState.CANDIDATE), actor="test")
            fields = {"id": side.evaluation_id, "checkpoint_id": side.checkpoint_id}
            tx.add(make_evaluation(state=EvaluationState.ANSWERED, **fields), actor="test")
        check = RegressionRequest(
            verdict_id="verdict-1",
            candidate=new,
            baseline=base,
            first_anchor=first,
            limits=RegressionLimits(num_resamples=200),
        )
        verdict = judge(check, now=START, rng=np.random.default_rng(0))
        judgements.record_verdict(tx, verdict=verdict, actor="test")
        test = AccuracyRequest(report_id="accuracy-1", candidate=new, baseline=base, limits=AccuracyLimits())
        accuracy.record_report(tx, report=report(test, now=START), actor="test")


def test_a_checkpoint_is_shown_with_slices_drift_power_and_what_flipped(registry: Registry) -> None:
    judge_one(registry)
    shown = CliRunner().invoke(cli, ["checkpoint", "show", "new"]).stdout
    assert "regressed against base:" in shown
    assert "The tag rhymes regressed: loss +48" in shown
    assert "Drift since the first anchor first: pass" in shown
    assert "Slices (p adjusted by Holm over 2)" in shown
    assert "is found with 80 % power (n = 200)" in shown
    assert "Automated testing against base:" in shown
    assert "3 rows lost: row-0000, row-0001, row-0002" in shown


def test_the_same_comes_as_json(registry: Registry) -> None:
    judge_one(registry)
    shown = json.loads(CliRunner().invoke(cli, ["checkpoint", "show", "new", "--json"]).stdout)
    assert [one["name"] for one in shown["verdicts"][0]["slices"]] == ["rhymes", "sums"]
    assert shown["verdicts"][0]["drift"]["checkpoint_id"] == "first"
    assert shown["accuracy"][0]["lost_row_ids"] == ["row-0000", "row-0001", "row-0002"]
