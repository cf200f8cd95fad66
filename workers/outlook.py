"""Reads from the registry what a forecast needs: what runs, what waits, how long past jobs took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from registry import hosts, order, queue
from registry.history import num_epochs, past_runs
from registry.order import QueueRules
from registry.records import Dataset, TrainingJob
from registry.states import JobState
from registry.status_files import JobStatus, QueuedJob
from registry.store import Transaction
from workers.forecast import (
    Pace,
    Span,
    Start,
    WaitingJob,
    forecast,
    pace_of,
    remaining_by_speed,
    starts,
)

MAX_PAST_JOBS = 20  # the newest: the machine, the model and the settings change
MAX_LISTED = 50


@dataclass(frozen=True)
class Outlook:
    """The queue as it will run, as far as that is known at one moment."""

    waiting: Sequence[TrainingJob]
    running: Sequence[TrainingJob]
    pace: Pace | None
    starts: Mapping[str, Start] = field(default_factory=dict)

    def line(self, line: JobStatus, *, job: TrainingJob, tx: Transaction) -> JobStatus:
        """A job's line with its end where it runs, its place and start where it waits."""
        start = self.starts.get(job.id)
        if start is None:
            return line.changed(eta=forecast(span_left(job, pace=self.pace, now=tx.now), now=tx.now))
        return line.changed(
            place=start.place,
            start=forecast(start.span, now=tx.now),
            start_unknown_because=_unknown_because(job, start=start, tx=tx),
        )

    def queued(self, *, priority: str, tx: Transaction) -> tuple[QueuedJob, ...]:
        """The first jobs of a queue."""
        mine = [job for job in self.waiting if job.priority == priority][:MAX_LISTED]
        return tuple(_queued(job, start=self.starts[job.id], tx=tx) for job in mine)


def look_ahead(tx: Transaction, *, rules: QueueRules | None = None) -> Outlook:
    """What waits and runs now, with places and expected starts."""
    waiting, running = queue.waiting(tx, rules=rules), queue.running(tx)
    pace = pace_of(past_runs(tx, limit=MAX_PAST_JOBS)) if waiting or running else None
    num_rows = _num_rows(tx, jobs=waiting)
    num_running = order.num_running_by_queue(tx)
    obstacle = partial(order.lasting_obstacle, tx, rules=rules or QueueRules(), num_running=num_running)
    standstill = hosts.standstill(tx)
    queued = [
        _waiting_job(tx, job, num_rows=num_rows.get(job.dataset_id, 0), obstacle=obstacle(job) or standstill)
        for job in waiting
    ]
    spans = [span_left(job, pace=pace, now=tx.now) for job in running]
    return Outlook(waiting, running, pace, starts(queued, running=spans, pace=pace))


def span_left(job: TrainingJob, *, pace: Pace | None, now: datetime) -> Span | None:
    """Time from now until a running job's last step; None where nothing was reported or it does not run.

    As its runner measured it at the last report, else by the speed that this report tells.
    """
    progress = job.progress
    if job.state is not JobState.RUNNING or progress is None:
        return None
    if progress.left is not None:
        age_seconds = max(0.0, (now - progress.reported_at).total_seconds())
        left = progress.left
        return Span(max(0.0, left.seconds - age_seconds), left.variance, left.num_samples)
    return remaining_by_speed(
        step=progress.step,
        num_steps=progress.num_steps,
        num_tokens=progress.num_tokens,
        tokens_per_second=progress.tokens_per_second,
        pace=pace,
    )


def _waiting_job(tx: Transaction, job: TrainingJob, *, num_rows: int, obstacle: str) -> WaitingJob:
    progress = job.progress
    share_left = 1.0 if progress is None else 1.0 - min(1.0, progress.step / progress.num_steps)
    held = 0.0 if job.not_before_at is None else (job.not_before_at - tx.now).total_seconds()
    return WaitingJob(
        id=job.id,
        num_rows=num_rows * num_epochs(job) * share_left,
        seconds_held=max(0.0, held),
        obstacle=obstacle,
    )


def _num_rows(tx: Transaction, *, jobs: Sequence[TrainingJob]) -> dict[str, int]:
    ids = list({job.dataset_id for job in jobs})
    pages = [ids[start : start + 500] for start in range(0, len(ids), 500)]
    return {found.id: found.num_rows for page in pages for found in tx.find(Dataset, id=page)}


def _queued(job: TrainingJob, *, start: Start, tx: Transaction) -> QueuedJob:
    return QueuedJob(
        job_id=job.id,
        name=job.name,
        place=start.place,
        start=forecast(start.span, now=tx.now),
        start_unknown_because=_unknown_because(job, start=start, tx=tx),
    )


def _unknown_because(job: TrainingJob, *, start: Start, tx: Transaction) -> str:
    """Where nothing tells when a job begins, its own earliest time is still known."""
    if start.span is not None:
        return start.reason
    return "; ".join(filter(None, (order.too_early(tx, job), start.reason)))
