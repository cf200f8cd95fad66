"""The queue of training jobs: strict by priority, first come first served inside.

The registry decides who is next, whichever message woke the worker: a lost, doubled or reordered
message changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from registry import commands, hosts, leases, lineage, order
from registry.errors import NotFound
from registry.order import QueueRules
from registry.records import Checkpoint, Dataset, JobProblem, Lease, Suite, TrainingJob
from registry.states import JobState, Priority, is_final
from registry.store import Transaction


class Sources(NamedTuple):
    """What a job learns, from where it starts, and what it is watched on where there is a suite."""

    dataset: Dataset
    parent: Checkpoint
    suite: Suite | None


class Seen(NamedTuple):
    """The job that may run next, as one look found it, and what its host was last said to wait for."""

    job: TrainingJob
    sources: Sources | None
    waits_for: str
    moment: Hashable


class Claimed(NamedTuple):
    """A job that is running from now on. Without sources there is nothing that training could start from."""

    job: TrainingJob
    lease: Lease
    sources: Sources | None


def resource_of(job_id: str) -> str:
    """Name of a job's lease."""
    return f"job:{job_id}"


def waiting(
    tx: Transaction, *, queues: Sequence[Priority] = tuple(Priority), rules: QueueRules | None = None
) -> list[TrainingJob]:
    """Queued jobs in the order in which they will run."""
    return list(order.candidates(tx, queues=queues, rules=rules))


def running(tx: Transaction) -> list[TrainingJob]:
    """Jobs that a worker holds, or held until it died."""
    return tx.find(TrainingJob, state=JobState.RUNNING)


def submit(
    tx: Transaction, job: TrainingJob, *, actor: str, rules: QueueRules | None = None
) -> tuple[TrainingJob, bool]:
    """Add a job and queue it; where its dedupe key is known, the job that bears it, and False.

    `NotFound` where it is to follow a job that there is not, `QueueFull` where no more may wait.
    """
    known = tx.find(TrainingJob, dedupe_key=job.dedupe_key, limit=1)
    if known:
        return known[0], False
    for job_id in job.after:
        tx.get(TrainingJob, job_id)
    order.refuse_where_full(tx, priority=job.priority, rules=rules)
    place = order.end_of_queue(tx, priority=job.priority)
    queued = job.changed(state=JobState.QUEUED, queued_at=tx.now, place=place)
    tx.insert(queued)
    steps = ((None, job.state, f"submitted by {job.submitted_by}"), (job.state, queued.state, ""))
    tx.log_steps(queued, steps=steps, actor=actor)
    return queued, True


def claim_next(
    tx: Transaction,
    *,
    queues: Sequence[Priority],
    holder: str,
    seconds: float,
    host: str = "",
    rules: QueueRules | None = None,
    seen: Seen | None = None,
) -> Claimed | None:
    """The first job that may run, with its lease and its parent fixed, or None. One effective run, however
    many workers ask.

    With `seen` also None where another job is the first by now. Where nothing was written since that look,
    what it found still holds and is not asked again.
    """
    if seen is not None and tx.moment() == seen.moment:
        return _begin(tx, seen.job, sources=seen.sources, holder=holder, seconds=seconds)
    if hosts.obstacle(tx, name=host):
        return None
    for job in _ready(tx, queues=queues, rules=rules or QueueRules()):
        if seen is not None and job.id != seen.job.id:
            return None
        sources = _sources_if_any(tx, job)
        claimed = _begin(tx, job, sources=sources, holder=holder, seconds=seconds)
        if claimed is not None:
            return claimed
    return None


def look(
    tx: Transaction, *, queues: Sequence[Priority], host: str = "", rules: QueueRules | None = None
) -> Seen | None:
    """The job that `claim_next` would take at this moment, with all that it would begin with."""
    standing = hosts.standing(tx, name=host)
    job = None if standing.obstacle else next(_ready(tx, queues=queues, rules=rules or QueueRules()), None)
    if job is None:
        return None
    return Seen(job, _sources_if_any(tx, job), standing.waits_for, tx.moment())


def sources_of(tx: Transaction, job: TrainingJob) -> Sources:
    """What a job would begin with now; `NotFound` where training has nothing to start from."""
    parent = lineage.parent_of(tx, job)
    return Sources(tx.get(Dataset, job.dataset_id), parent, lineage.active_suite(tx))


def put_back(tx: Transaction, job: TrainingJob, *, lease: Lease, actor: str, reason: str) -> TrainingJob:
    """Return a job in good order: it keeps its place, its progress and its attempts."""
    queued = tx.transition(job, to=JobState.QUEUED, lease=lease, actor=actor, reason=reason)
    leases.release(tx, lease)
    return commands.obey_waiting(tx, queued, actor=actor)


def record_problem(
    tx: Transaction,
    job: TrainingJob,
    *,
    kind: str,
    message: str,
    can_retry: bool,
    actor: str,
    lease: Lease | None = None,
    not_before_at: datetime | None = None,
) -> TrainingJob:
    """End an attempt badly: back to the queue while attempts are left and a retry can help, else `failed`.

    `not_before_at` is when it may be tried again. What a person asked of the job meanwhile is done.
    """
    attempts = job.attempts + 1
    problem = JobProblem(kind=kind, message=message, attempt=attempts, at=tx.now)
    to = JobState.QUEUED if can_retry and attempts < job.max_attempts else JobState.FAILED
    changes: dict[str, object] = {"attempts": attempts, "problems": (*job.problems, problem)}
    if to is JobState.FAILED:
        changes |= {"finished_at": tx.now, "command": None}
    elif not_before_at is not None:
        changes["not_before_at"] = not_before_at
    ended = tx.transition(job, to=to, lease=lease, actor=actor, reason=f"{kind}: {message}", **changes)
    if lease is not None:
        leases.release(tx, lease)
    return commands.obey_waiting(tx, ended, actor=actor)


def reject(
    tx: Transaction, job: TrainingJob, *, kind: str, message: str, lease: Lease, actor: str
) -> TrainingJob:
    """End a job whose data or configuration cannot be trained on."""
    problem = JobProblem(kind=kind, message=message, attempt=job.attempts + 1, at=tx.now)
    ended = tx.transition(
        job,
        to=JobState.REJECTED,
        lease=lease,
        actor=actor,
        reason=f"{kind}: {message}",
        problems=(*job.problems, problem),
        command=None,
        finished_at=tx.now,
    )
    leases.release(tx, lease)
    return ended


def requeue_abandoned(
    tx: Transaction,
    *,
    actor: str,
    kind: str = "worker_lost",
    can_retry: bool = True,
    not_before: Callable[[TrainingJob], datetime | None] = lambda _job: None,
) -> list[TrainingJob]:
    """Put back the running jobs whose lease expired: their worker is dead or cut off.

    Whether and from when each may be tried again is the caller's to say; as it stands, at once.
    """
    abandoned = [job for job in running(tx) if not leases.is_held(tx, resource=resource_of(job.id))]
    return [
        record_problem(
            tx,
            job,
            kind=kind,
            message="its worker stopped renewing the lease (killed, frozen or cut off)",
            can_retry=can_retry,
            actor=actor,
            not_before_at=not_before(job),
        )
        for job in abandoned
    ]


def cancel_followers(tx: Transaction, *, actor: str) -> list[TrainingJob]:
    """Cancel the queued jobs that were to follow one that ended without success."""
    cancelled = []
    for job in tx.find(TrainingJob, state=JobState.QUEUED):
        failed = next((found for found in _predecessors(tx, job) if _ended_in_vain(found)), None)
        if failed is not None:
            reason = f"it was to follow {failed.id}, which is {failed.state}"
            cancelled.append(
                tx.transition(
                    job, to=JobState.CANCELLED, actor=actor, reason=reason, note=reason, finished_at=tx.now
                )
            )
    return cancelled


def oldest_wait_seconds(jobs: Sequence[TrainingJob], *, now: datetime) -> float | None:
    """How long the longest-waiting of these jobs waits, or None where none does."""
    times = [job.queued_at for job in jobs if job.queued_at]
    return max(0.0, (now - min(times)).total_seconds()) if times else None


def _sources_if_any(tx: Transaction, job: TrainingJob) -> Sources | None:
    try:
        return sources_of(tx, job)
    except NotFound:
        return None  # its run ends badly, with the reason


def _begin(
    tx: Transaction, job: TrainingJob, *, sources: Sources | None, holder: str, seconds: float
) -> Claimed | None:
    lease = leases.acquire(tx, resource=resource_of(job.id), holder=holder, seconds=seconds)
    if lease is None:
        return None
    running = tx.transition(
        job,
        to=JobState.RUNNING,
        actor=lease.holder,
        reason=f"claimed with token {lease.token}",
        started_at=job.started_at or tx.now,
        parent_checkpoint_id=job.parent_checkpoint_id if sources is None else sources.parent.id,
    )
    return Claimed(running, lease, sources)


def _ready(tx: Transaction, *, queues: Sequence[Priority], rules: QueueRules) -> Iterator[TrainingJob]:
    num_running = order.num_running_by_queue(tx) if rules.max_running else {}
    for job in order.candidates(tx, queues=queues, rules=rules):
        if not order.obstacle(tx, job, rules=rules, num_running=num_running):
            yield job


def _predecessors(tx: Transaction, job: TrainingJob) -> list[TrainingJob]:
    found = [tx.seek(TrainingJob, job_id) for job_id in job.after]
    return [predecessor for predecessor in found if predecessor is not None]


def _ended_in_vain(job: TrainingJob) -> bool:
    return is_final(job.state) and job.state not in order.GOOD_ENDS
