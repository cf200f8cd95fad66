"""Doors of automated testing: report on an intelligence host, record beside the registry; and the net."""

from __future__ import annotations

from intelligence.accuracy import report
from registry import accuracy, asks
from registry.messages import AccuracyRequest, Nothing
from registry.reports import AccuracyReport
from tasks.door import door
from workers import evidence, projections
from workers.context import Context, Message
from workers.pipeline import announce


@door("testing.run")
def run(request: AccuracyRequest, context: Context) -> None:
    """Accuracy by difficulty, paired with the anchored baseline; send the report home. Loads no model."""
    context.deliver(Message("testing.record", report(request, now=context.registry.clock())))


@door("testing.record")
def record(found: AccuracyReport, context: Context) -> None:
    """Save a report, and its alert, once."""
    with context.registry.transaction() as tx:
        accuracy.record_report(tx, report=found, actor=context.actor)
        asks.settle(tx, kind="accuracy", subject_id=found.evaluation_id)
    projections.refresh(context.registry, settings=context.settings)


@door("judgement.sweep")
def sweep(_request: Nothing, context: Context) -> None:
    """Ask again for every verdict and test that is owed, and write the evidence that is missing."""
    announce(context)
    evidence.refresh(context.registry, directory=context.settings.paths.evaluations)
