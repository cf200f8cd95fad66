"""Automated testing's reports and everybody's alerts: kept once, whatever comes twice."""

from __future__ import annotations

from sqlalchemy import select

from registry.ids import id_of
from registry.records import Evaluation
from registry.reports import AccuracyReport, Alert
from registry.states import AlertLevel, AlertSource, EvaluationState
from registry.store import Transaction
from registry.tables import accuracy_reports, evaluations


def report_id(evaluation_id: str) -> str:
    """The id of an evaluation's only report."""
    return id_of("accuracy", evaluation_id)


def untested(tx: Transaction, *, suite_id: str) -> list[Evaluation]:
    """Answered evaluations on a suite that have no report yet, oldest first."""
    reported = select(accuracy_reports.c.evaluation_id)
    query = (
        select(evaluations)
        .where(evaluations.c.suite_id == suite_id, evaluations.c.state == str(EvaluationState.ANSWERED))
        .where(evaluations.c.id.not_in(reported))
        .order_by(evaluations.c.requested_at, evaluations.c.id)
    )
    return [Evaluation.model_validate(dict(row)) for row in tx.connection.execute(query).mappings()]


def record_report(tx: Transaction, *, report: AccuracyReport, actor: str) -> AccuracyReport | None:
    """Save a report, and its alert; None where it was recorded before."""
    if tx.seek(AccuracyReport, report.id) is not None:
        return None
    tx.insert(report)
    if report.level is not None:
        raise_alert(
            tx,
            source=AlertSource.TESTING,
            level=report.level,
            checkpoint_id=report.checkpoint_id,
            suite_id=report.suite_id,
            message=" ".join(report.reasons),
            actor=actor,
        )
    return report


def raise_alert(
    tx: Transaction,
    *,
    source: AlertSource,
    level: AlertLevel,
    checkpoint_id: str,
    suite_id: str,
    message: str,
    actor: str,
) -> Alert | None:
    """Tell people, once for each source, level, checkpoint and suite; None where they were told before."""
    alert = Alert(
        id=id_of("alert", source, level, checkpoint_id, suite_id),
        source=source,
        level=level,
        checkpoint_id=checkpoint_id,
        suite_id=suite_id,
        message=message,
        raised_at=tx.now,
    )
    if tx.seek(Alert, alert.id) is not None:
        return None
    tx.add(alert, actor=actor, reason=f"{checkpoint_id}: {message}")
    return alert
