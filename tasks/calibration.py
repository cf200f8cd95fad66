"""Doors of the calibrator: judge stored answers on an intelligence host, record beside the registry."""

from __future__ import annotations

from registry import asks, judgements
from registry.calibrations import Calibration, CalibrationRequest
from tasks.door import door
from workers import calibrations, diagrams, projections
from workers.context import Context, Message
from workers.pipeline import owed


@door("calibration.run")
def run(request: CalibrationRequest, context: Context) -> None:
    """Measure an evaluation's confidences and choose the map; send both home. Loads no model."""
    calibration = calibrations.judge(request, now=context.registry.clock())
    context.deliver(Message("calibration.record", calibration))


@door("calibration.record")
def record(calibration: Calibration, context: Context) -> None:
    """Save a calibration once, draw its diagram, and ask for the deployment that waited for it."""
    with context.registry.transaction() as tx:
        judgements.record_calibration(tx, calibration=calibration, actor=context.actor)
        asks.settle(tx, kind="calibration", subject_id=calibration.evaluation_id)
        messages = owed(tx, settings=context.settings)
    context.ring(messages)
    diagrams.draw(calibration, directory=context.settings.paths.reliability)
    projections.refresh(context.registry, settings=context.settings)
