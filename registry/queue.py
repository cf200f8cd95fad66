"""The queue of training jobs: strict by priority, first come first served inside.

The registry decides who is next, whichever message woke the worker: a lost, doubled or reordered
message changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from registry import leases
from registry.records import JobProblem, Lease, TrainingJob
from registry.states import JobState, Priority
from registry.store import Transaction

MAX_ATTEMPTS = 3


def resource_of(job_id: str) -> str:
    """Name of a job's lease."""
    return f"job:{job_id}"


def waiting(tx: Transaction, *, queues: Sequence[Priority] = tuple(Priority)) -> list[TrainingJob]:
    """Queued jobs in the order in which they will run."""
    jobs = tx.find(TrainingJob, state=JobState.QUEUED, priority=[str(queue) for queue in queues])
    return sorted(jobs, key=lambda job: (job.priority.rank, job.queued_at or job.submitted_at, job.id))


def running(tx: Transaction) -> list[TrainingJob]:
    """Jobs that a worker holds, or held until it died."""
    return tx.find(TrainingJob, state=JobState.RUNNING)


def submit(tx: Transaction, job: TrainingJob, *, actor: str) -> tuple[TrainingJob, bool]:
    """Add a job and queue it; where its dedupe key is known, the job that bears it, and False."""
    known = tx.find(TrainingJob, dedupe_key=job.dedupe_key, limit=1)
    if known:
        return known[0], False
    tx.add(job, actor=actor, reason=f"submitted by {job.submitted_by}")
    return enqueue(tx, job, actor=actor), True


def enqueue(tx: Transaction, job: TrainingJob, *, actor: str, reason: str = "") -> TrainingJob:
    """Put a submitted job at the end of its queue."""
    return tx.transition(job, to=JobState.QUEUED, actor=actor, reason=reason, queued_at=tx.now)


def claim_next(
    tx: Transaction, *, queues: Sequence[Priority], holder: str, seconds: float
) -> tuple[TrainingJob, Lease] | None:
    """The first waiting job with its lease, or None. One effective run, however many workers ask."""
    for job in waiting(tx, queues=queues):
        lease = leases.acquire(tx, resource=resource_of(job.id), holder=holder, seconds=seconds)
        if lease is not None:
            started_at = job.started_at or tx.now
            reason = f"claimed with token {lease.token}"
            claimed = tx.transition(
                job, to=JobState.RUNNING, actor=holder, reason=reason, started_at=started_at
            )
            return claimed, lease
    return None


def put_back(tx: Transaction, job: TrainingJob, *, lease: Lease, actor: str, reason: str) -> TrainingJob:
    """Return a job in good order: it keeps its place, its progress and its attempts."""
    queued = tx.transition(job, to=JobState.QUEUED, lease=lease, actor=actor, reason=reason)
    leases.release(tx, lease)
    return queued


def record_problem(
    tx: Transaction,
    job: TrainingJob,
    *,
    kind: str,
    message: str,
    can_retry: bool,
    actor: str,
    lease: Lease | None = None,
) -> TrainingJob:
    """End an attempt badly: back to the queue while attempts are left and a retry can help, else `failed`."""
    attempts = job.attempts + 1
    problem = JobProblem(kind=kind, message=message, attempt=attempts, at=tx.now)
    to = JobState.QUEUED if can_retry and attempts < MAX_ATTEMPTS else JobState.FAILED
    changes: dict[str, object] = {"attempts": attempts, "problems": (*job.problems, problem)}
    if to is JobState.FAILED:
        changes["finished_at"] = tx.now
    ended = tx.transition(job, to=to, lease=lease, actor=actor, reason=f"{kind}: {message}", **changes)
    if lease is not None:
        leases.release(tx, lease)
    return ended


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
        finished_at=tx.now,
    )
    leases.release(tx, lease)
    return ended


def requeue_abandoned(tx: Transaction, *, actor: str) -> list[TrainingJob]:
    """Put back the running jobs whose lease expired: their worker is dead or cut off."""
    abandoned = [job for job in running(tx) if not leases.is_held(tx, resource=resource_of(job.id))]
    message = "its worker stopped renewing the lease (killed, frozen or cut off)"
    return [
        record_problem(tx, job, kind="worker_lost", message=message, can_retry=True, actor=actor)
        for job in abandoned
    ]


def oldest_wait_seconds(jobs: Sequence[TrainingJob], *, now: datetime) -> float | None:
    """How long the longest-waiting of these jobs waits, or None where none does."""
    times = [job.queued_at for job in jobs if job.queued_at]
    return max(0.0, (now - min(times)).total_seconds()) if times else None
