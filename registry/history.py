"""What happened: events in the order they were written, and how long past jobs really ran.

A cursor does not rely on writers taking turns: an event's number is given before its transaction ends, so
without that a lower number could appear after a higher one. It remembers the numbers that it has not seen
and looks for them again: no event is skipped or repeated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime
from sqlalchemy import ColumnElement, func, or_, select

from registry.progress import EndPrediction
from registry.records import Checkpoint, Dataset, Event, Record, TrainingJob
from registry.states import JobState
from registry.store import Transaction
from registry.tables import datasets, events, jobs

PAGE = 1000
MAX_GAPS = 1000  # numbers of transactions that were taken back are never seen


class EventCursor(Record):
    """Every event up to `last_id` was read, except those of `gaps`, of which no row was visible yet."""

    last_id: int = 0
    gaps: tuple[int, ...] = ()


class EndedJob(Record):
    """As much of an ended job as a name needs: reading it costs little."""

    id: str
    name: str
    state: JobState
    ended_at: AwareDatetime


class PastRun(Record):
    """A job that succeeded: its rows, counted once an epoch, and the seconds that it was running."""

    job_id: str
    num_rows: float
    seconds: float


def newest_events(
    tx: Transaction,
    *,
    subjects: Sequence[str] | None = None,
    after_id: int | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> list[Event]:
    """Events, oldest first; where there are more than `limit`, the newest of them."""
    conditions = _about(subjects)
    if after_id is not None:
        conditions.append(events.c.id > after_id)
    if since is not None:
        conditions.append(events.c.at >= since)
    query = select(events).where(*conditions).order_by(events.c.id.desc()).limit(limit)
    return [Event.model_validate(dict(row)) for row in tx.connection.execute(query).mappings()][::-1]


def end_of_events(tx: Transaction) -> EventCursor:
    """A cursor behind everything that is visible now."""
    ids = list(tx.connection.scalars(select(events.c.id).order_by(events.c.id.desc()).limit(PAGE)))
    return _moved(EventCursor(last_id=min(ids, default=1) - 1), ids=ids)


def next_events(
    tx: Transaction, cursor: EventCursor, *, subjects: Sequence[str] | None = None
) -> tuple[list[Event], EventCursor]:
    """The next page of events with the cursor behind it; without subjects, of all."""
    is_new = or_(events.c.id > cursor.last_id, events.c.id.in_(cursor.gaps))
    query = select(events).where(is_new).order_by(events.c.id).limit(PAGE)
    rows = [dict(row) for row in tx.connection.execute(query).mappings()]
    wanted = None if subjects is None else set(subjects)
    found = [Event.model_validate(row) for row in rows if wanted is None or row["subject_id"] in wanted]
    return found, _moved(cursor, ids=[row["id"] for row in rows])


def subjects_of_job(tx: Transaction, *, job_id: str) -> list[str]:
    """The job and its checkpoints; `NotFound` where there is no such job."""
    tx.get(TrainingJob, job_id)
    return [job_id, *(checkpoint.id for checkpoint in tx.find(Checkpoint, job_id=job_id))]


def ended_jobs(
    tx: Transaction, *, states: Sequence[JobState], since: datetime | None = None
) -> list[EndedJob]:
    """Jobs in these states; with `since`, those that ended no earlier."""
    ended_at = func.coalesce(jobs.c.finished_at, jobs.c.submitted_at, type_=jobs.c.finished_at.type)
    query = select(jobs.c.id, jobs.c.name, jobs.c.state, ended_at.label("ended_at"))
    query = query.where(jobs.c.state.in_([str(state) for state in states])).order_by(jobs.c.id)
    if since is not None:
        query = query.where(jobs.c.finished_at >= since)  # by the index: most ended long ago
    rows = tx.connection.execute(query).mappings()
    # Not validated one by one: they come out of typed columns, and there may be many thousands.
    return [EndedJob.model_construct(**row | {"state": JobState(row["state"])}) for row in map(dict, rows)]


def past_runs(tx: Transaction, *, limit: int) -> list[PastRun]:
    """The newest succeeded jobs with the time between their claims and what ended them: no waiting counts."""
    ended = tx.find(TrainingJob, state=JobState.SUCCEEDED, newest_first="finished_at", limit=limit)
    datasets = {found.id: found for found in tx.find(Dataset, id={job.dataset_id for job in ended})}
    seconds = _running_seconds(tx, job_ids=[job.id for job in ended])
    return [
        PastRun(
            job_id=job.id,
            num_rows=datasets[job.dataset_id].num_rows * num_epochs(job),
            seconds=seconds[job.id],
        )
        for job in ended
        if seconds.get(job.id, 0.0) > 0 and job.dataset_id in datasets
    ]


def num_epochs(job: TrainingJob) -> float:
    """How often a job reads its rows, as its hyperparameters say."""
    return _epochs(job.hyperparameters)


def finished_work(tx: Transaction, *, since: datetime) -> list[float]:
    """The rows of each job that succeeded since then, counted once an epoch."""
    query = (
        select(datasets.c.num_rows, jobs.c.hyperparameters)
        .join(datasets, datasets.c.id == jobs.c.dataset_id)
        .where(jobs.c.state == str(JobState.SUCCEEDED), jobs.c.finished_at >= since)
    )
    return [num_rows * _epochs(values) for num_rows, values in tx.connection.execute(query)]


def first_submission(tx: Transaction) -> datetime | None:
    """When the first job of all was submitted; None where there is none."""
    found: datetime | None = tx.connection.execute(
        select(jobs.c.submitted_at).order_by(jobs.c.submitted_at).limit(1)
    ).scalar()
    return found


def kept_predictions(tx: Transaction, *, limit: int) -> list[tuple[EndPrediction, float]]:
    """What was predicted of the newest succeeded jobs, each with the seconds that it really took."""
    ended = tx.find(TrainingJob, state=JobState.SUCCEEDED, newest_first="finished_at", limit=limit)
    return [
        (prediction, (job.finished_at - prediction.made_at).total_seconds())
        for job in ended
        if job.progress is not None and job.finished_at is not None
        for prediction in job.progress.predictions
    ]


def _epochs(hyperparameters: Mapping[str, Any]) -> float:
    epochs = hyperparameters.get("num_epochs", 1)
    return float(epochs) if isinstance(epochs, int | float) else 1.0


def _about(subjects: Sequence[str] | None) -> list[ColumnElement[bool]]:
    return [] if subjects is None else [events.c.subject_id.in_(list(subjects))]


def _moved(cursor: EventCursor, *, ids: Iterable[int]) -> EventCursor:
    seen = set(ids)
    last_id = max(seen, default=cursor.last_id)
    last_id = max(last_id, cursor.last_id)
    fresh = range(max(cursor.last_id + 1, last_id - MAX_GAPS), last_id)
    gaps = [number for number in (*cursor.gaps, *fresh) if number not in seen]
    return EventCursor(last_id=last_id, gaps=tuple(gaps[-MAX_GAPS:]))


def _running_seconds(tx: Transaction, *, job_ids: Sequence[str]) -> dict[str, float]:
    running, totals = str(JobState.RUNNING), defaultdict[str, float](float)
    started: dict[str, Any] = {}
    query = select(events.c.subject_id, events.c.at, events.c.before, events.c.after)
    query = query.where(events.c.subject_id.in_(job_ids)).order_by(events.c.id)
    for job_id, at, before, after in tx.connection.execute(query):
        if after == running and before != running:
            started[job_id] = at
        elif before == running and after in set(JobState) and after != running and job_id in started:
            totals[job_id] += max(0.0, (at - started.pop(job_id)).total_seconds())
    return totals
