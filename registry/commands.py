"""Commands to training jobs: at once where nobody trains, else passed on and obeyed at the next step."""

from __future__ import annotations

from typing import Any

from registry import leases, order
from registry.errors import IllegalTransition
from registry.order import QueueRules
from registry.records import Checkpoint, Lease, TrainingJob
from registry.states import Command, JobState
from registry.store import Transaction

ATTEMPTS_A_RETRY = 3

# What each command makes of a job, by the state it finds it in.
EFFECTS: dict[Command, dict[JobState, JobState]] = {
    Command.PAUSE: {JobState.QUEUED: JobState.PAUSED, JobState.RUNNING: JobState.PAUSED},
    Command.RESUME: {JobState.PAUSED: JobState.QUEUED},
    Command.SKIP: {JobState.QUEUED: JobState.QUEUED, JobState.RUNNING: JobState.QUEUED},
    Command.STOP: {
        JobState.QUEUED: JobState.STOPPED,
        JobState.PAUSED: JobState.STOPPED,
        JobState.RUNNING: JobState.STOPPED,
    },
    Command.RETRY: {
        JobState.STOPPED: JobState.QUEUED,
        JobState.FAILED: JobState.QUEUED,
        JobState.REJECTED: JobState.QUEUED,
        JobState.CANCELLED: JobState.QUEUED,
    },
    Command.CANCEL: {
        JobState.QUEUED: JobState.CANCELLED,
        JobState.PAUSED: JobState.CANCELLED,
        JobState.RUNNING: JobState.CANCELLED,
    },
}


def give(
    tx: Transaction,
    *,
    job_id: str,
    command: Command,
    actor: str,
    reason: str,
    rules: QueueRules | None = None,
) -> tuple[TrainingJob, bool]:
    """The job, and True where the command is in effect; False where its trainer was asked.

    `IllegalTransition` names the state that does not allow it; `QueueFull` where it would wait once more and
    no more may.
    """
    job = tx.get(TrainingJob, job_id)
    if job.state not in EFFECTS[command]:
        allowed = " or ".join(EFFECTS[command])
        raise IllegalTransition(
            f"{job.id} is {job.state}; only a job that is {allowed} can {command}.",
            remedy=f"`tandem job show {job.id}` tells its story.",
        )
    if command in (Command.RESUME, Command.RETRY):
        order.refuse_where_full(tx, priority=job.priority, rules=rules)
    if job.state is JobState.RUNNING:
        tx.log(
            kind="TrainingJob",
            subject_id=job.id,
            before=job.state,
            after=f"{command} asked for",
            actor=actor,
            reason=reason,
        )
        return tx.update(job, command=command), False
    return _carry_out(tx, job, command=command, actor=actor, reason=reason), True


def obey(tx: Transaction, job: TrainingJob, *, lease: Lease, actor: str) -> TrainingJob:
    """What the command of a running job asked for, now that its trainer has ended."""
    current = tx.get(TrainingJob, job.id)
    if current.command is None:
        raise IllegalTransition(f"{job.id} was given no command.")
    tx.check_lease(lease)
    done = _carry_out(tx, current, command=current.command, actor=actor, reason="its trainer has ended")
    leases.release(tx, lease)
    return done


def obey_waiting(tx: Transaction, job: TrainingJob, *, actor: str) -> TrainingJob:
    """What was asked of a job whose attempt ended otherwise: it waits now, so it is done at once."""
    current = tx.get(TrainingJob, job.id)
    if current.state is not JobState.QUEUED or current.command is None:
        return current
    return _carry_out(tx, current, command=current.command, actor=actor, reason="asked for while it ran")


def pending(tx: Transaction, *, job_id: str) -> Command | None:
    """What a running job was asked and has not done yet."""
    return tx.get(TrainingJob, job_id).command


def _carry_out(
    tx: Transaction, job: TrainingJob, *, command: Command, actor: str, reason: str
) -> TrainingJob:
    to = EFFECTS[command][job.state]
    why = f"{command}: {reason}"
    changes: dict[str, Any] = {"command": None}
    if to is JobState.QUEUED:
        changes |= {"queued_at": tx.now, "place": order.end_of_queue(tx, priority=job.priority)}
    if command is Command.RETRY:
        changes |= {"finished_at": None, "note": "", "max_attempts": job.attempts + ATTEMPTS_A_RETRY}
    if to is JobState.STOPPED:
        last = tx.find(Checkpoint, job_id=job.id, newest_first="step", limit=1)
        changes["final_checkpoint_id"] = last[0].id if last else None
    if to in (JobState.CANCELLED, JobState.STOPPED):
        used = _what_was_used(job)
        changes |= {"finished_at": tx.now, "note": used}
        why = f"{why}; {used}"
    if to is job.state:
        tx.log(kind="TrainingJob", subject_id=job.id, before=job.state, after=to, actor=actor, reason=why)
        return tx.update(job, **changes)
    return tx.transition(job, to=to, actor=actor, reason=why, **changes)


def _what_was_used(job: TrainingJob) -> str:
    progress = job.progress
    if progress is None or progress.step == 0:
        return "nothing of its data was used"
    unused = progress.num_unused_rows
    rows = "how many rows were never used is unknown" if unused is None else f"{unused} rows were never used"
    return f"ended at step {progress.step} of {progress.num_steps}; {rows}"
