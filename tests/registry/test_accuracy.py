from datetime import timedelta

import pytest

from registry import accuracy, judgements
from registry.records import Evaluation, Verdict
from registry.reports import AccuracyReport, Alert
from registry.states import AlertLevel, AlertSource, CheckpointState, EvaluationState, Outcome
from registry.store import Registry
from registry.testing import START, make_checkpoint, make_evaluation, make_suite

CHECKPOINT = "ckpt-aaaaaa-00000010"


def make_report(**changes) -> AccuracyReport:
    fields = {
        "id": accuracy.report_id("eval-1"),
        "checkpoint_id": CHECKPOINT,
        "suite_id": "suite-1",
        "evaluation_id": "eval-1",
        "baseline_checkpoint_id": "base",
        "baseline_evaluation_id": "eval-0",
        "total": None,
        "lost_row_ids": ("row-1",),
        "reasons": ("It fell.",),
        "made_at": START,
    }
    return AccuracyReport.model_validate(fields | changes)


def make_verdict(number: int, **changes) -> Verdict:
    fields = {
        "id": f"verdict-{number}",
        "checkpoint_id": CHECKPOINT,
        "suite_id": "suite-1",
        "evaluation_id": "eval-1",
        "baseline_checkpoint_id": None,
        "baseline_evaluation_id": None,
        "outcome": Outcome.PASS,
        "reasons": ("because",),
        "num_pairs": 40,
        "decided_at": START + timedelta(minutes=number),
    }
    return Verdict.model_validate(fields | changes)


@pytest.fixture
def evaluated(registry: Registry) -> Registry:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(make_checkpoint(state=CheckpointState.CANDIDATE), actor="test")
        for number in (1, 2):
            tx.add(make_evaluation(id=f"eval-{number}", state=EvaluationState.ANSWERED), actor="test")
        tx.add(make_evaluation(id="eval-3"), actor="test")
    return registry


def test_answered_evaluations_without_a_report_are_untested(evaluated: Registry) -> None:
    with evaluated.transaction() as tx:
        assert [one.id for one in accuracy.untested(tx, suite_id="suite-1")] == ["eval-1", "eval-2"]
        assert accuracy.record_report(tx, report=make_report(), actor="test") is not None
        assert [one.id for one in accuracy.untested(tx, suite_id="suite-1")] == ["eval-2"]
        assert accuracy.untested(tx, suite_id="suite-2") == []


def test_a_report_that_comes_twice_is_kept_once_and_alerts_once(evaluated: Registry) -> None:
    report = make_report(level=AlertLevel.CRITICAL)
    with evaluated.transaction() as tx:
        assert accuracy.record_report(tx, report=report, actor="test") == report
        assert accuracy.record_report(tx, report=report, actor="test") is None
        assert tx.get(AccuracyReport, report.id) == report
        (alert,) = tx.find(Alert)
    assert (alert.source, alert.level) == (AlertSource.TESTING, AlertLevel.CRITICAL)
    assert (alert.checkpoint_id, alert.message) == (CHECKPOINT, "It fell.")


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (Outcome.PASS, None),
        (Outcome.WATCH, AlertLevel.WARNING),
        (Outcome.UNKNOWN, AlertLevel.WARNING),
        (Outcome.REGRESSED, AlertLevel.CRITICAL),
    ],
)
def test_a_verdict_that_blocks_alerts_once_for_each_level(
    evaluated: Registry, outcome: Outcome, level: AlertLevel | None
) -> None:
    with evaluated.transaction() as tx:
        for number in (1, 2):
            verdict = make_verdict(number, outcome=outcome)
            assert judgements.record_verdict(tx, verdict=verdict, actor="test") is not None
            assert judgements.record_verdict(tx, verdict=verdict, actor="test") is None
        alerts = tx.find(Alert)
    assert [alert.level for alert in alerts] == ([] if level is None else [level])


def test_the_first_anchor_is_the_baseline_of_the_earliest_verdict_that_had_one(evaluated: Registry) -> None:
    with evaluated.transaction() as tx:
        assert judgements.first_anchor(tx, suite_id="suite-1") is None
        tx.add(make_verdict(1), actor="test")
        assert judgements.first_anchor(tx, suite_id="suite-1") is None
        tx.add(make_verdict(3, baseline_evaluation_id="eval-2"), actor="test")
        tx.add(make_verdict(2, baseline_evaluation_id="eval-1"), actor="test")
        first = judgements.first_anchor(tx, suite_id="suite-1")
        assert first == tx.get(Evaluation, "eval-1")
        assert judgements.first_anchor(tx, suite_id="suite-2") is None
