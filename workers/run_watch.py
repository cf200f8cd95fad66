"""What a runner makes of its trainer's reports: progress, time left, device, warnings, and alerts as they
come and go.

ETAs are kept at fixed shares of a run, so that once it has ended anybody can see how far off they were.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from registry.errors import RegistryUnavailable
from registry.progress import DeviceReading, EndPrediction, TimeLeft, TrainingAlert
from registry.records import JobProgress, TrainingJob
from registry.store import Registry, Transaction
from trainer.messages import Progress
from workers.devices import Device, read_device
from workers.forecast import Sample, Span, collected, forecast, remaining
from workers.surroundings import Surroundings, read_surroundings

log = logging.getLogger(__name__)

SHARES = (0.1, 0.5, 0.9)
MAX_LATENESS = 0.1  # a share missed by more is not predicted: it would be another share
EVENT_KIND = "TrainingAlert"
WARNING_KIND = "TrainingWarning"
MAX_WARNINGS = 100  # as events, of one attempt; the worker's log has all


@dataclass
class RunWatch:
    """Of one attempt at one job. `device` is the first of the `num_devices` that it takes."""

    job: TrainingJob
    registry: Registry
    device: Device
    num_devices: int = 1
    surroundings: Surroundings = field(default_factory=Surroundings)
    _samples: tuple[Sample, ...] = ()
    _predictions: dict[float, EndPrediction] = field(default_factory=dict)
    _reading: DeviceReading | None = None
    _trainer_memory_bytes: int | None = None
    _open: dict[str, TrainingAlert] = field(default_factory=dict)
    _changes: list[tuple[TrainingAlert, bool]] = field(default_factory=list)
    _warnings: list[str] = field(default_factory=list)
    _num_warnings: int = 0

    def __post_init__(self) -> None:
        """Alerts that an earlier attempt left open are cleared by the first report that has them no more."""
        progress = self.job.progress
        self._open = {alert.kind: alert for alert in progress.alerts} if progress is not None else {}

    def take(self, message: Progress) -> JobProgress:
        """A report as it is kept with the job."""
        now = self.registry.clock()
        self._trainer_memory_bytes = message.resident_bytes
        if self._reading is None:
            self._read_device()
        self._samples = collected(self._samples, sample=Sample(step=message.step, at=now))
        span = remaining(self._samples, num_steps=message.num_steps)
        self._predict(message, span=span)
        self._compare(message.alerts)
        fields = message.model_dump(include=set(JobProgress.model_fields))
        return JobProgress.model_validate(
            {
                **fields,
                "left": _time_left(span),
                "predictions": tuple(self._predictions.values()),
                "device": self._reading,
                "reported_at": now,
            }
        )

    def look_around(self) -> None:
        """Read the device, and what stands around the run. A registry that is away leaves what was known."""
        self._read_device()
        try:
            self.surroundings = read_surroundings(self.registry, job_id=self.job.id)
        except RegistryUnavailable as error:
            log.warning("%s: its surroundings could not be read: %s", self.job.id, error)

    def note_divergence(self, message: str, *, step: int) -> TrainingAlert:
        """The run ended because a number was none."""
        alert = TrainingAlert(
            kind="not_finite",
            message=message,
            value=None,
            limit=None,
            since_step=step,
            raised_at=self.registry.clock(),
        )
        self._compare((*(one for one in self._open.values() if one.kind != alert.kind), alert))
        return alert

    def note_warning(self, message: str) -> None:
        """The trainer met something and went on: people read it in the log and among the job's events."""
        log.warning("%s: %s", self.job.id, message)
        self._num_warnings += 1
        if self._num_warnings <= MAX_WARNINGS:
            is_last = self._num_warnings == MAX_WARNINGS
            self._warnings.append(f"{message} More warnings are in the worker's log." if is_last else message)

    def write_events(self, tx: Transaction, *, actor: str) -> None:
        """One event for each warning, and for each alert raised or cleared, since `forget_events`."""
        for message in self._warnings:
            self._log(tx, kind=WARNING_KIND, after="warned", actor=actor, reason=message)
        for alert, is_raised in self._changes:
            self._log(
                tx,
                kind=EVENT_KIND,
                before=None if is_raised else "raised",
                after="raised" if is_raised else "cleared",
                actor=actor,
                reason=f"{alert.kind}: {alert.message}",
                data=alert.model_dump(mode="json"),
            )

    def forget_events(self) -> None:
        """They are written, and the transaction has ended well."""
        self._changes.clear()
        self._warnings.clear()

    def _log(self, tx: Transaction, *, before: str | None = None, **fields: Any) -> None:
        tx.log(subject_id=self.job.id, before=before, **fields)

    def _compare(self, alerts: tuple[TrainingAlert, ...]) -> None:
        current = {str(alert.kind): alert for alert in alerts}
        self._changes += [(alert, True) for kind, alert in current.items() if kind not in self._open]
        self._changes += [(alert, False) for kind, alert in self._open.items() if kind not in current]
        self._open = current

    def _predict(self, message: Progress, *, span: Span | None) -> None:
        share = message.step / message.num_steps
        said = forecast(span, now=self.registry.clock())
        for mark in SHARES:
            is_due = mark <= share < min(1.0, mark + MAX_LATENESS)
            if said is None or not is_due or mark in self._predictions:
                continue
            self._predictions[mark] = EndPrediction(
                share=mark,
                step=message.step,
                seconds=said.seconds,
                low_seconds=said.low_seconds,
                high_seconds=said.high_seconds,
                made_at=self.registry.clock(),
            )

    def _read_device(self) -> None:
        found = read_device(
            self.device, trainer_memory_bytes=self._trainer_memory_bytes, now=self.registry.clock()
        )
        if self.num_devices > 1:
            found = found.changed(name=f"{found.name}, the first of {self.num_devices}")
        self._reading = found


def _time_left(span: Span | None) -> TimeLeft | None:
    if span is None or not math.isfinite(span.seconds):
        return None
    variance = span.variance if span.variance is not None and math.isfinite(span.variance) else None
    return TimeLeft(seconds=span.seconds, variance=variance, num_samples=span.num_samples)
