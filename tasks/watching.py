"""Watches a job until its end: one look after another at the registry, a view of what changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from registry.errors import RegistryUnavailable
from registry.order import QueueRules
from registry.records import TrainingJob
from registry.states import JobState, is_final
from registry.status_files import Forecast, JobStatus
from registry.store import Registry
from workers.errors import NoAnswer
from workers.forecast import Sample, collected, forecast, remaining
from workers.outlook import Outlook, look_ahead, span_left
from workers.status import job_line

OUTAGE_SECONDS = 60.0  # a registry may be away so long before the watch gives up
OUTLOOK_SECONDS = 5.0  # a place in a queue of thousands is not counted at every look
TICKING = {"age_seconds", "eta", "start"}  # what changes although nothing happened


@dataclass(frozen=True)
class Watched:
    """A job at one moment, with its line."""

    job: TrainingJob
    line: JobStatus


@dataclass
class JobWatcher:
    """Looks at a job, and measures its speed from the reports that it saw itself."""

    registry: Registry
    job_id: str
    rules: QueueRules | None = None
    _samples: tuple[Sample, ...] = ()
    _outlook: Outlook | None = None
    _looked_ahead: float = -OUTLOOK_SECONDS
    monotonic: Callable[[], float] = time.monotonic

    def look(self) -> Watched:
        """The job now. Its end is unknown before two reports, seen here or by its runner."""
        with self.registry.reading() as tx:
            job = tx.get(TrainingJob, self.job_id)
            line = job_line(job, now=tx.now)
            if job.state is JobState.QUEUED:
                self._samples = ()
                if self.monotonic() - self._looked_ahead >= OUTLOOK_SECONDS:
                    self._outlook = look_ahead(tx, rules=self.rules)
                    self._looked_ahead = self.monotonic()
                if self._outlook is not None and job.id in self._outlook.starts:
                    line = self._outlook.line(line, job=job, tx=tx)
            elif job.state is JobState.RUNNING and job.progress is not None:
                progress = job.progress
                sample = Sample(step=progress.step, at=progress.reported_at)
                self._samples = collected(self._samples, sample=sample)
                span = remaining(self._samples, num_steps=progress.num_steps)
                if span is None and progress.left is not None:  # its runner has seen more reports
                    span = span_left(job, pace=None, now=tx.now)
                line = line.changed(eta=forecast(span, now=tx.now))
        return Watched(job=job, line=line)


@dataclass
class Watch:
    """Looks again and again. `sleep` and `monotonic` are the clock."""

    watcher: JobWatcher
    timeout_seconds: float | None = None
    poll_seconds: float = 0.5
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    _last: object = field(default=None, init=False)
    _seen: float = field(default=0.0, init=False)

    def changes(self) -> Iterator[Watched]:
        """Each change, the last one final; `NoAnswer` after the timeout."""
        started = self._seen = self.monotonic()
        watched: Watched | None = self.watcher.look()
        while True:
            if watched is not None:
                key = (watched.line.model_dump(exclude=TICKING), watched.job.progress)
                if key != self._last:
                    self._last = key
                    yield watched
                if is_final(watched.job.state):
                    return
            elapsed = self.monotonic() - started
            if self.timeout_seconds is not None and elapsed > self.timeout_seconds:
                state = "not to be seen" if watched is None else watched.job.state
                raise NoAnswer(f"{self.watcher.job_id} is still {state} after {self.timeout_seconds:g} s.")
            self.sleep(self.poll_seconds)
            watched = self._look_again()

    def _look_again(self) -> Watched | None:
        """None while the registry is away for a moment: a restart or a locked database is not the end."""
        try:
            watched = self.watcher.look()
        except RegistryUnavailable:
            if self.monotonic() - self._seen > OUTAGE_SECONDS:
                raise
            return None
        self._seen = self.monotonic()
        return watched


class View(Protocol):
    """Shows what changed."""

    def show(self, line: JobStatus) -> None:
        """Show a line of a job."""


class BarView:
    """A live bar, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
        )
        self._bar = self._progress.add_task("", total=None, detail="")

    def __enter__(self) -> BarView:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def show(self, line: JobStatus) -> None:
        """Move the bar."""
        self._progress.update(
            self._bar,
            description=f"{line.id} {line.state}",
            total=line.num_steps,
            completed=line.step or 0,
            detail=detail(line),
        )


class LineView:
    """A line for each change, for a file or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, line: JobStatus) -> None:
        """Write it and flush."""
        self._stream.write(f"{line.id} {line.state}  {detail(line)}".rstrip() + "\n")
        self._stream.flush()


def progress_view(*, show: bool | None) -> AbstractContextManager[View | None]:
    """The view of a waiting program, on standard error: standard output stays its own.

    A bar on a terminal; elsewhere lines if `show`, and nothing where that was left open.
    """
    if sys.stderr.isatty() and show is not False:
        return BarView(Console(file=sys.stderr))
    return nullcontext(LineView(sys.stderr) if show else None)


def detail(line: JobStatus) -> str:
    """Place and start of a waiting job, the numbers of a running one, the reason of an ended one."""
    words = []
    if line.place is not None:
        start = duration(line.start) if line.start else f"unknown ({line.start_unknown_because})"
        words += [f"place {line.place}", f"begins in {start}"]
    if line.step is not None:
        words.append(f"step {line.step}/{line.num_steps}")
    if line.loss is not None:
        words.append(f"loss {line.loss:.3f}")
    if line.state == JobState.RUNNING:
        words += [f"{line.tokens_per_second:.0f} tokens/s"] if line.tokens_per_second is not None else []
        words.append(f"ETA {duration(line.eta)}")
    return "  ".join([*words, *([line.reason] if line.reason else [])])


def duration(forecast: Forecast | None) -> str:
    """`5 min (4 min to 7 min)`; `unknown` where nothing was measured."""
    if forecast is None:
        return "unknown"
    if forecast.low_seconds is None or forecast.high_seconds is None:
        return f"{_words(forecast.seconds)} (error unknown)"
    return f"{_words(forecast.seconds)} ({_words(forecast.low_seconds)} to {_words(forecast.high_seconds)})"


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
