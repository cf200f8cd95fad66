"""The order in which jobs run, and what keeps a job from running yet.

High before normal before low, and inside a queue by place. With ageing a job that waited long enough
counts as one of the next higher queue, so that low jobs cannot starve.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field, PositiveInt
from sqlalchemy import CompoundSelect, Select, bindparam, select, union_all

from registry.errors import IllegalTransition, QueueFull
from registry.records import Record, TrainingJob
from registry.states import JobState, Priority, is_final
from registry.store import Transaction
from registry.tables import jobs

FIRST_PAGE, LAST_PAGE = 4, 256  # rows read at a time: mostly the first job is taken
MICROSECONDS = 1_000_000
GOOD_ENDS = (JobState.SUCCEEDED, JobState.STOPPED)
MOVABLE = (JobState.QUEUED, JobState.PAUSED)


class QueueRules(Record):
    """What a person may set about the queues. Nothing is limited and nothing ages by default."""

    max_running: dict[Priority, PositiveInt] = Field(
        default_factory=dict, description="jobs of a queue that may run at the same time, on all hosts"
    )
    max_waiting: dict[Priority, PositiveInt] = Field(
        default_factory=dict,
        description="jobs of a queue that may wait; one more is refused, but for one that is put back",
    )
    aging_minutes: float | None = Field(
        default=None, gt=0, description="after each such wait a job counts as one queue higher"
    )


def candidates(
    tx: Transaction, *, queues: Sequence[Priority] = tuple(Priority), rules: QueueRules | None = None
) -> Iterator[TrainingJob]:
    """Queued jobs, first to last. Rows are read as they are asked for: the first one costs no more in a
    queue of thousands."""
    rules = rules or QueueRules()
    ordered = tuple(sorted(set(queues), key=lambda priority: priority.rank))
    pages = _first_pages(tx, queues=ordered)
    heads = (_by_place(tx, priority=priority, first_page=pages[priority]) for priority in ordered)
    return heapq.merge(*heads, key=lambda job: (_rank(tx, job, rules=rules), job.place, job.id))


def obstacle(tx: Transaction, job: TrainingJob, *, rules: QueueRules, num_running: Mapping[str, int]) -> str:
    """Why a queued job may not run yet; empty where it may."""
    return too_early(tx, job) or lasting_obstacle(tx, job, rules=rules, num_running=num_running)


def too_early(tx: Transaction, job: TrainingJob) -> str:
    """Until when a job is held back; empty where its time has come."""
    if job.not_before_at is None or job.not_before_at <= tx.now:
        return ""
    return f"not before {job.not_before_at:%Y-%m-%d %H:%M:%S} UTC"


def lasting_obstacle(
    tx: Transaction, job: TrainingJob, *, rules: QueueRules, num_running: Mapping[str, int]
) -> str:
    """The same without its time: what nobody can say when it will end."""
    for job_id in job.after:
        before = tx.seek(TrainingJob, job_id)
        if before is None or before.state not in GOOD_ENDS:
            return f"after {job_id} ({before.state if before else 'unknown'})"
    limit, running = rules.max_running.get(job.priority), num_running.get(job.priority, 0)
    if limit is not None and running >= limit:
        return f"{running} of at most {limit} {job.priority} jobs are running"
    return ""


def num_running_by_queue(tx: Transaction) -> Counter[str]:
    """How many jobs of each queue are running."""
    return Counter(str(job.priority) for job in tx.find(TrainingJob, state=JobState.RUNNING))


def end_of_queue(tx: Transaction, *, priority: Priority) -> int:
    """The place behind every job of a queue: microseconds, since jobs come in order of time."""
    last = tx.rows(_last_place(), {"queue": str(priority)})
    by_time = int(tx.now.timestamp() * MICROSECONDS)
    return max(by_time, last[0]["place"] + 1) if last else by_time


def refuse_where_full(tx: Transaction, *, priority: Priority, rules: QueueRules | None) -> None:
    """`QueueFull` where as many jobs wait in a queue as may. For a job that a person sends there: what
    comes back from a worker has its place."""
    limit = None if rules is None else rules.max_waiting.get(priority)
    if limit is None:
        return
    num_waiting = len(tx.find(TrainingJob, state=JobState.QUEUED, priority=priority, limit=limit))
    if num_waiting >= limit:
        raise QueueFull(
            f"{num_waiting} jobs wait in {priority}, and no more than {limit} may.",
            remedy="Try it later or with another queue, or raise TANDEM_QUEUE__MAX_WAITING.",
        )


def set_priority(
    tx: Transaction,
    *,
    job_id: str,
    priority: Priority,
    actor: str,
    reason: str = "",
    rules: QueueRules | None = None,
) -> TrainingJob:
    """Put a job into another queue. It keeps its time of arrival; a running one goes there if put back.

    `QueueFull` where it waits and no more may there.
    """
    job = tx.get(TrainingJob, job_id)
    if is_final(job.state):
        raise _not_waiting(job)
    if job.state is JobState.QUEUED and job.priority is not priority:
        refuse_where_full(tx, priority=priority, rules=rules)
    why = f"{job.priority} -> {priority}. {reason}".strip()
    _log(tx, job, actor=actor, reason=why)
    return tx.update(job, priority=priority)


def move(
    tx: Transaction, *, job_id: str, before_id: str | None, to_end: bool = False, actor: str, reason: str = ""
) -> TrainingJob:
    """Put a job before another of its queue; without one to the front, or to the end."""
    job = tx.get(TrainingJob, job_id)
    if job.state not in MOVABLE:
        raise _not_waiting(job)
    others = [other for other in candidates(tx, queues=[job.priority]) if other.id != job.id]
    index = len(others) if to_end else 0
    if before_id is not None:
        index = _index_of(others, job=job, before_id=before_id)
    ordered = [*others[:index], job, *others[index:]]
    places = sorted(item.place for item in ordered)
    for item, place in zip(ordered, _distinct(places), strict=True):
        if item.place != place:
            tx.update(item, place=place)
    where = f"before {before_id}" if before_id else "to the end" if to_end else "to the front"
    _log(tx, job, actor=actor, reason=f"moved {where} of {job.priority}. {reason}".strip())
    return tx.get(TrainingJob, job.id)


def _first_pages(tx: Transaction, *, queues: tuple[Priority, ...]) -> dict[Priority, list[TrainingJob]]:
    """The first jobs of every queue, in one question."""
    pages: dict[Priority, list[TrainingJob]] = {priority: [] for priority in queues}
    if not queues:
        return pages
    for row in tx.rows(_fronts(queues)):
        job = TrainingJob.model_validate(row)
        pages[job.priority].append(job)
    return {queue: sorted(page, key=lambda job: (job.place, job.id)) for queue, page in pages.items()}


@lru_cache
def _fronts(queues: tuple[Priority, ...]) -> CompoundSelect[Any]:
    fronts = [
        _queued(str(priority)).order_by(jobs.c.place, jobs.c.id).limit(FIRST_PAGE) for priority in queues
    ]
    return union_all(*(select(front.subquery()) for front in fronts))


@lru_cache(maxsize=1)
def _last_place() -> Select[Any]:
    queued = _queued(bindparam("queue")).with_only_columns(jobs.c.place)
    return queued.order_by(jobs.c.place.desc()).limit(1)


def _queued(priority: Any) -> Select[Any]:
    return select(jobs).where(jobs.c.state == str(JobState.QUEUED), jobs.c.priority == priority)


def _by_place(
    tx: Transaction, *, priority: Priority, first_page: Sequence[TrainingJob]
) -> Iterator[TrainingJob]:
    yield from first_page
    offset, size, page = 0, FIRST_PAGE, list(first_page)
    while len(page) == size:
        offset, size = offset + size, min(4 * size, LAST_PAGE)
        page = tx.find(
            TrainingJob,
            state=JobState.QUEUED,
            priority=priority,
            order_by="place",
            limit=size,
            offset=offset,
        )
        yield from page


def _rank(tx: Transaction, job: TrainingJob, *, rules: QueueRules) -> int:
    if rules.aging_minutes is None:
        return job.priority.rank
    waited = (tx.now - (job.queued_at or job.submitted_at)).total_seconds()
    return max(0, job.priority.rank - int(max(0.0, waited) // (60 * rules.aging_minutes)))


def _index_of(others: Sequence[TrainingJob], *, job: TrainingJob, before_id: str) -> int:
    for index, other in enumerate(others):
        if other.id == before_id:
            return index
    raise IllegalTransition(
        f"{job.id} cannot be moved before {before_id}: that does not wait in {job.priority}.",
        remedy="`tandem queue list` shows what waits; `tandem queue set-priority` changes a job's queue.",
    )


def _distinct(places: Sequence[int]) -> Iterator[int]:
    last: int | None = None
    for place in places:
        last = place if last is None else max(place, last + 1)
        yield last


def _not_waiting(job: TrainingJob) -> IllegalTransition:
    return IllegalTransition(
        f"{job.id} is {job.state}: it has no place in a queue.",
        remedy=f"`tandem job show {job.id}` tells its story.",
    )


def _log(tx: Transaction, job: TrainingJob, *, actor: str, reason: str) -> None:
    tx.log(
        kind="TrainingJob",
        subject_id=job.id,
        before=job.state,
        after=job.state,
        actor=actor,
        reason=reason,
    )
