"""When training will end and when a waiting job will begin: arithmetic on measured times, no clock inside.

A forecast carries a 95 % interval from the spread of what was measured, and none where a single
measurement shows no spread. Where nothing was measured there is no forecast: unknown, never 0.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from intelligence.statistics import t_95
from registry.history import PastRun
from registry.status_files import Forecast

MAX_SAMPLES = 30  # of the newest reports: speed changes with what else the machine does
MAX_SECONDS = 10 * 365 * 86400.0  # beyond that a forecast says nothing

NOTHING_RUNS = "nothing runs, so nothing says when it will begin"
NO_SPEED = "the running job has not reported its speed yet"
NO_PAST = "no job has succeeded yet, so nothing says how long one takes"


@dataclass(frozen=True)
class Sample:
    """A report of a trainer: which step, when."""

    step: int
    at: datetime


@dataclass(frozen=True)
class Span:
    """A time still to pass. `variance` is None where its spread is unknown."""

    seconds: float
    variance: float | None
    num_samples: int


@dataclass(frozen=True, order=True)
class Work:
    """Jobs that stand before another: their rows, and the sum of the squares of each one's rows."""

    num_rows: float = 0.0
    squares: float = 0.0

    def and_then(self, num_rows: float) -> Work:
        """With one job more."""
        return Work(self.num_rows + num_rows, self.squares + num_rows**2)


@dataclass(frozen=True)
class Pace:
    """Seconds a row as past jobs needed them, and how much one job differs from the mean of all."""

    seconds_per_row: float
    relative_variance: float | None
    num_jobs: int

    def span(self, work: Work) -> Span:
        """Jobs one after another: each differs by itself, and the error of the mean is common to all."""
        mean = self.seconds_per_row * work.num_rows
        if self.relative_variance is None:
            return Span(mean, None, self.num_jobs)
        rows = work.squares + work.num_rows**2 / self.num_jobs
        return Span(mean, self.seconds_per_row**2 * self.relative_variance * rows, self.num_jobs)


@dataclass(frozen=True)
class WaitingJob:
    """A job of the queue: the rows left to it, the seconds it is held, and the job that it awaits."""

    id: str
    num_rows: float
    seconds_held: float = 0.0
    obstacle: str = ""


@dataclass(frozen=True)
class Start:
    """When a waiting job is expected to begin, or why that is unknown."""

    place: int
    span: Span | None
    reason: str = ""


def collected(samples: Sequence[Sample], *, sample: Sample) -> tuple[Sample, ...]:
    """The samples with a new report behind them; begun anew where a resumed run repeats steps."""
    if samples and sample.at <= samples[-1].at:
        return tuple(samples)
    if samples and sample.step < samples[-1].step:
        return (sample,)
    return (*samples, sample)[-MAX_SAMPLES:]


def remaining(samples: Sequence[Sample], *, num_steps: int) -> Span | None:
    """Time until the last step, by the mean time of a step; None before two reports of different steps.

    The time of n steps is taken as normal with variance n times that of a step. What is uncertain is the
    mean (the steps seen are few) and the steps to come (each is long or short).
    """
    intervals = [
        (float(after.step - before.step), (after.at - before.at).total_seconds())
        for before, after in itertools.pairwise(samples)
        if after.step > before.step and after.at > before.at
    ]
    num_left = num_steps - samples[-1].step if samples else 0
    if not intervals or num_left < 0:
        return None
    seen = sum(steps for steps, _ in intervals)
    mean = sum(seconds for _, seconds in intervals) / seen
    if len(intervals) == 1:
        return Span(mean * num_left, None, 1)
    squares = sum((seconds - mean * steps) ** 2 / steps for steps, seconds in intervals)
    of_a_step = squares / (len(intervals) - 1)
    return Span(mean * num_left, of_a_step * (num_left + num_left**2 / seen), len(intervals))


def remaining_by_speed(
    *, step: int, num_steps: int, num_tokens: int, tokens_per_second: float | None, pace: Pace | None
) -> Span | None:
    """Time until the last step from one report: the trainer's speed and the mean size of a step so far.

    One report has no spread; how much past jobs differed from each other stands for it.
    """
    if step < 1 or not tokens_per_second or num_tokens < 1 or num_steps < step:
        return None
    seconds = num_tokens / step * (num_steps - step) / tokens_per_second
    relative = None if pace is None else pace.relative_variance
    variance = None if relative is None else seconds**2 * relative
    return Span(seconds, variance, 1 if pace is None or relative is None else pace.num_jobs)


def pace_of(runs: Sequence[PastRun]) -> Pace | None:
    """Seconds a row of past jobs; None where none is known."""
    known = [run for run in runs if run.num_rows > 0 and run.seconds > 0]
    if not known:
        return None
    per_row = sum(run.seconds for run in known) / sum(run.num_rows for run in known)
    if len(known) == 1:
        return Pace(per_row, None, 1)
    errors = [run.seconds / (per_row * run.num_rows) - 1 for run in known]
    return Pace(per_row, sum(error**2 for error in errors) / (len(known) - 1), len(known))


def starts(
    waiting: Sequence[WaitingJob], *, running: Sequence[Span | None], pace: Pace | None
) -> dict[str, Start]:
    """The place and the expected start of each waiting job, first to last.

    Each job goes to whichever worker is free first by what is expected; as many work as run a job now.
    """
    missing = NOTHING_RUNS if not running else NO_SPEED if None in running else ""
    workers = [(span.seconds, index, span, Work()) for index, span in enumerate(running) if span is not None]
    heapq.heapify(workers)
    found: dict[str, Start] = {}
    for place, job in enumerate(waiting, start=1):
        if missing or job.obstacle:
            found[job.id] = Start(place, None, job.obstacle or missing)
            continue
        _, index, first, ahead = workers[0]
        start = _sum(first, pace=pace, ahead=ahead)
        if job.seconds_held > start.seconds:  # whoever stands behind it goes first
            found[job.id] = Start(place, Span(job.seconds_held, start.variance, start.num_samples))
            continue
        found[job.id] = Start(place, start)
        if pace is None:
            missing = NO_PAST
            continue
        end = start.seconds + pace.seconds_per_row * job.num_rows
        heapq.heapreplace(workers, (end, index, first, ahead.and_then(job.num_rows)))
    return found


def forecast(span: Span | None, *, now: datetime) -> Forecast | None:
    """A span as people and programs read it; None where it is unknown or beyond all measure."""
    if span is None or not math.isfinite(span.seconds) or span.seconds > MAX_SECONDS:
        return None
    low = high = None
    if span.variance is not None and math.isfinite(span.variance) and span.num_samples > 1:
        half = t_95(span.num_samples - 1) * math.sqrt(span.variance)
        low, high = max(0.0, span.seconds - half), min(span.seconds + half, MAX_SECONDS)
    return Forecast(
        seconds=span.seconds,
        low_seconds=low,
        high_seconds=high,
        num_samples=span.num_samples,
        at=now + timedelta(seconds=span.seconds),
    )


def _sum(first: Span, *, pace: Pace | None, ahead: Work) -> Span:
    if pace is None or not ahead.num_rows:
        return first
    rest = pace.span(ahead)
    seconds = first.seconds + rest.seconds
    if first.variance is None or rest.variance is None:
        return Span(seconds, None, rest.num_samples)
    return Span(seconds, first.variance + rest.variance, min(first.num_samples, rest.num_samples))
