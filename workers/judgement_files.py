"""What `regression_monitoring.json` and `automated_testing.json` say, from the registry."""

from __future__ import annotations

from registry import judgements, lineage
from registry.records import Checkpoint, Evaluation, Verdict
from registry.reports import AccuracyReport, Alert
from registry.states import AlertSource, EvaluationState, Outcome
from registry.status_files import (
    AccuracyLine,
    AccuracyPoint,
    AlertLine,
    AutomatedTesting,
    RegressionLine,
    RegressionMonitoring,
)
from registry.store import Transaction

MAX_VERDICTS = 50  # each tells its slices
MAX_REPORTS = 50  # each names every row that flipped
MAX_ALERTS = 50
MAX_HISTORY = 1000


def regression_monitoring(tx: Transaction, *, stale_after_seconds: float) -> RegressionMonitoring:
    """Verdicts, newest first."""
    verdicts = tx.find(Verdict, newest_first="decided_at", limit=MAX_VERDICTS)
    counts = judgements.verdict_counts(tx)
    suite = lineage.active_suite(tx)
    first = None if suite is None else judgements.first_anchor(tx, suite_id=suite.id)
    return RegressionMonitoring(
        written_at=tx.now,
        stale_after_seconds=stale_after_seconds,
        verdicts=tuple(
            RegressionLine(
                verdict=verdict.outcome, **verdict.model_dump(include=set(RegressionLine.model_fields))
            )
            for verdict in verdicts
        ),
        num_passed=counts[Outcome.PASS],
        num_watched=counts[Outcome.WATCH],
        num_regressed=counts[Outcome.REGRESSED],
        num_unknown=counts[Outcome.UNKNOWN],
        first_anchor_checkpoint_id=None if first is None else first.checkpoint_id,
        alerts=_alerts(tx, source=AlertSource.REGRESSION),
    )


def automated_testing(tx: Transaction, *, stale_after_seconds: float) -> AutomatedTesting:
    """Reports and history on the active suite."""
    suite = lineage.active_suite(tx)
    common = {"written_at": tx.now, "stale_after_seconds": stale_after_seconds}
    alerts = _alerts(tx, source=AlertSource.TESTING)
    if suite is None:
        note = "no suite is active"
        return AutomatedTesting(suite_id=None, reports=(), history=(), alerts=alerts, note=note, **common)
    reports = tx.find(AccuracyReport, suite_id=suite.id, newest_first="made_at", limit=MAX_REPORTS)
    lines = [
        AccuracyLine.model_validate(report.model_dump(include=set(AccuracyLine.model_fields)))
        for report in reports
    ]
    return AutomatedTesting(
        suite_id=suite.id,
        reports=tuple(lines),
        history=_history(tx, suite_id=suite.id),
        alerts=alerts,
        note="" if reports else "no report was made yet",
        **common,
    )


def _history(tx: Transaction, *, suite_id: str) -> tuple[AccuracyPoint, ...]:
    answered = tx.find(
        Evaluation,
        suite_id=suite_id,
        state=EvaluationState.ANSWERED,
        newest_first="requested_at",
        limit=MAX_HISTORY,
    )
    summaries = {one.checkpoint_id: one.summary for one in reversed(answered) if one.summary is not None}
    checkpoints = tx.find(Checkpoint, id=list(summaries))
    return tuple(
        AccuracyPoint(
            checkpoint_id=one.id,
            step=one.step,
            accuracy=summaries[one.id].known_accuracy,
            accuracy_by_difficulty=summaries[one.id].known_accuracy_by_difficulty,
            num_unknown=summaries[one.id].num_unknown,
            created_at=one.created_at,
        )
        for one in sorted(checkpoints, key=lambda one: (one.created_at, one.step, one.id))
    )


def _alerts(tx: Transaction, *, source: AlertSource) -> tuple[AlertLine, ...]:
    found = tx.find(Alert, source=source, newest_first="raised_at", limit=MAX_ALERTS)
    return tuple(
        AlertLine.model_validate(alert.model_dump(include=set(AlertLine.model_fields))) for alert in found
    )
