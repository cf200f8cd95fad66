"""Commands to training jobs: at once where nobody trains, else passed on and obeyed at the next step."""

from __future__ import annotations

from typing import Any

from registry import leases
from registry.errors import IllegalTransition
from registry.records import Lease, TrainingJob
from registry.states import Command, JobState
from registry.store import Transaction

# What each command makes of a job, by the state it finds it in.
EFFECTS: dict[Command, dict[JobState, JobState]] = {
    Command.PAUSE: {JobState.QUEUED: JobState.PAUSED, JobState.RUNNING: JobState.PAUSED},
    Command.RESUME: {JobState.PAUSED: JobState.QUEUED},
    Command.SKIP: {JobState.QUEUED: JobState.QUEUED, JobState.RUNNING: JobState.QUEUED},
    Command.CANCEL: {
        JobState.QUEUED: JobState.CANCELLED,
        JobState.PAUSED: JobState.CANCELLED,
        JobState.RUNNING: JobState.CANCELLED,
    },
}


def give(
    tx: Transaction, *, job_id: str, command: Command, actor: str, reason: str
) -> tuple[TrainingJob, bool]:
    """The job, and True where the command is in effect; False where its trainer was asked.

    `IllegalTransition` names the state that does not allow it.
    """
    job = tx.get(TrainingJob, job_id)
    if job.state not in EFFECTS[command]:
        allowed = " or ".join(EFFECTS[command])
        raise IllegalTransition(
            f"{job.id} is {job.state}; only a job that is {allowed} can {command}.",
            remedy=f"`tandem job show {job.id}` tells its story.",
        )
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
        changes["queued_at"] = tx.now
    if to is JobState.CANCELLED:
        changes["finished_at"] = tx.now
    if to is job.state:
        tx.log(kind="TrainingJob", subject_id=job.id, before=job.state, after=to, actor=actor, reason=why)
        return tx.update(job, **changes)
    return tx.transition(job, to=to, actor=actor, reason=why, **changes)
