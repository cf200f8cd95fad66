"""What `checkpoint show` tells of a checkpoint's confidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from registry.calibrations import Calibration, CalibrationMap, Reliability
from registry.records import Estimate
from tasks.cli.output import console
from workers import diagrams


def print_calibrations(calibrations: Sequence[Calibration], *, directory: Path) -> None:
    """The newest calibration: error with interval, map, and its diagram, drawn where it is missing."""
    if not calibrations:
        console.print("confidence: no calibration yet", markup=False)
        return
    for line in calibration_lines(calibrations[0]):
        console.print(line, markup=False)
    found = diagrams.paths(calibrations[0].checkpoint_id, directory=directory)
    if not all(path.exists() for path in found.values()):
        diagrams.draw(calibrations[0], directory=directory)
    for path in found.values():
        if path.exists():
            console.print(f"  diagram {path}", markup=False)


def calibration_lines(calibration: Calibration) -> list[str]:
    """In words, each number with its interval and n."""
    lines = [f"confidence: {calibration.outcome}. {calibration.reason}"]
    if calibration.overall is not None:
        lines.append(f"  own      {_errors(calibration.overall)}")
    if calibration.map is not None:
        lines.append(f"  map      {_map(calibration.map)}")
    if calibration.before is not None and calibration.after is not None:
        lines.append(f"  held out {_errors(calibration.before)}")
        if calibration.after != calibration.before:
            lines.append(f"  mapped   {_errors(calibration.after)}")
    return lines


def _errors(reliability: Reliability) -> str:
    parts = {"ECE": reliability.ece, "adaptive ECE": reliability.adaptive_ece, "Brier": reliability.brier}
    told = ", ".join(f"{name} {_told(estimate)}" for name, estimate in parts.items())
    gap = reliability.confidence_gap
    sureness = f"confidence - accuracy {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    return f"{told}, {sureness}; n = {gap.num_samples}"


def _map(how: CalibrationMap) -> str:
    at = f" {_told(how.temperature)}" if how.temperature is not None else ""
    return f"{how.kind}{at}, fitted on {how.num_fitted} rows"


def _told(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
