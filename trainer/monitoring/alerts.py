"""What a person should look at while a run trains: each alert with its value, its limit and since when."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from registry.progress import AlertKind, MicroEvaluation, TrainingAlert

NUM_BASELINE_REPORTS = 20
NUM_RECENT_REPORTS = 5
MIN_SPEED_SHARE = 0.6
MIN_LOSSES = 20
MAX_GAP = 0.3


@dataclass(frozen=True)
class Finding:
    """Something that holds at this moment and is beyond its limit."""

    kind: AlertKind
    message: str
    value: float | None
    limit: float | None


class AlertBook:
    """Remembers since when each alert holds."""

    def __init__(self) -> None:
        self._open: dict[AlertKind, TrainingAlert] = {}

    def update(
        self, findings: Iterable[Finding | None], *, step: int, now: datetime
    ) -> tuple[TrainingAlert, ...]:
        """The alerts that hold now; one that held before keeps its beginning."""
        self._open = {
            finding.kind: self._alert(finding, step=step, now=now)
            for finding in findings
            if finding is not None
        }
        return tuple(self._open.values())

    def _alert(self, finding: Finding, *, step: int, now: datetime) -> TrainingAlert:
        before = self._open.get(finding.kind)
        return TrainingAlert(
            kind=finding.kind,
            message=finding.message,
            value=finding.value,
            limit=finding.limit,
            since_step=step if before is None else before.since_step,
            raised_at=now if before is None else before.raised_at,
        )


class SpeedRecord:
    """Speeds of reports in tokens a second: the first ones are the baseline, after one that warms up."""

    def __init__(self) -> None:
        self._speeds: list[float] = []

    def add(self, speed: float | None) -> Finding | None:
        """One report more, and what is to be said of the last ones."""
        if speed is not None:
            self._speeds.append(speed)
            del self._speeds[1 + NUM_BASELINE_REPORTS + NUM_RECENT_REPORTS : -NUM_RECENT_REPORTS]
        return throughput_finding(self._speeds[1:])


def throughput_finding(speeds: Sequence[float]) -> Finding | None:
    """Where the last reports' median speed is under 60 % of that of the first ones."""
    if len(speeds) < NUM_BASELINE_REPORTS + NUM_RECENT_REPORTS:
        return None
    baseline = statistics.median(speeds[:NUM_BASELINE_REPORTS])
    recent = statistics.median(speeds[-NUM_RECENT_REPORTS:])
    limit = MIN_SPEED_SHARE * baseline
    if recent >= limit:
        return None
    message = f"{recent:.0f} tokens/s is {recent / baseline:.0%} of the {baseline:.0f} that it began with"
    return Finding("throughput", message, value=recent, limit=limit)


def variance_finding(steps: Sequence[tuple[float, int]]) -> Finding | None:
    """Where the last steps' losses, (sum, answer tokens) each, spread more than their mean."""
    losses = [loss_sum / num_answers for loss_sum, num_answers in steps]
    if len(losses) < MIN_LOSSES:
        return None
    mean, spread = statistics.fmean(losses), statistics.stdev(losses)
    if spread <= mean:
        return None
    message = f"the loss of the last {len(losses)} steps spreads by {spread:.3g} around {mean:.3g}"
    return Finding("loss_variance", message, value=spread, limit=mean)


def gap_finding(evaluation: MicroEvaluation | None) -> Finding | None:
    """Where validation loss exceeds training loss by over 0.3 nats, and that cannot be chance."""
    gap = None if evaluation is None else evaluation.gap
    if evaluation is None or gap is None or gap.value <= MAX_GAP or gap.low <= 0:
        return None
    message = (
        f"validation loss exceeds training loss by {gap.value:.2f} ({gap.low:.2f} to {gap.high:.2f}) "
        f"at step {evaluation.step}: {evaluation.gap_state}"
    )
    return Finding("gap", message, value=gap.value, limit=MAX_GAP)


def not_finite_finding(evaluation: MicroEvaluation | None) -> Finding | None:
    """Where the held-out rows or those learnt have no finite loss any more."""
    if evaluation is None or "not finite" not in evaluation.problem:
        return None
    return Finding("not_finite", evaluation.problem, value=None, limit=None)
