"""What training is doing, as `training_status.json` and every other door tell it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from registry import hosts, queue
from registry.progress import JobProgress, TrainingError
from registry.records import Lease, TrainingJob
from registry.states import JobState
from registry.status_files import TrainingState, TrainingStatus
from registry.store import Transaction
from workers.forecast import forecast
from workers.outlook import span_left
from workers.surroundings import Surroundings

# Two heartbeats and a half: with a sweep each 30 s, a dead trainer reads `crashed` within 60 s.
CRASHED_AFTER_SECONDS = 25.0

NO_REPORT = "the trainer has not reported yet"
SAME_NAME = (
    "step",
    "epoch",
    "loss",
    "smoothed_loss",
    "learning_rate",
    "tokens_per_second",
    "average_tokens_per_second",
    "alerts",
    "num_unused_rows",
    "device",
    "reported_at",
)


def current(tx: Transaction, *, surroundings: Surroundings | None = None) -> TrainingStatus:
    """Training as the registry knows it: the running job, or why none runs."""
    running = queue.running(tx)
    if running:
        job = running[0]
        lease = tx.seek(Lease, queue.resource_of(job.id))
        age = None if lease is None else (tx.now - lease.renewed_at).total_seconds()
        is_alive = age is not None and age < CRASHED_AFTER_SECONDS
        return of_job(job, now=tx.now, is_alive=is_alive, surroundings=surroundings)
    waiting = queue.waiting(tx)
    crashed = next((job for job in waiting if job.problems), None)
    status = of_job(crashed, now=tx.now, surroundings=surroundings)
    if crashed is None:
        status = status.changed(error=_newest_error(tx))
    held = hosts.standstill(tx)
    if not held:
        return status
    return status.changed(reason=held if crashed is None else f"{status.reason} Now {held}")


def of_job(
    job: TrainingJob | None,
    *,
    now: datetime,
    is_alive: bool = True,
    surroundings: Surroundings | None = None,
) -> TrainingStatus:
    """What a job's row says of training; `is_alive` is False where its lease is no longer renewed."""
    common = {
        "written_at": now,
        "stale_after_seconds": CRASHED_AFTER_SECONDS,
        **_around(surroundings or Surroundings()),
    }
    if job is None:
        return TrainingStatus(status="idle", reason="no job is running", **common)
    status, reason = _state(job, is_alive=is_alive)
    return TrainingStatus(
        status=status,
        reason=reason,
        job_id=job.id,
        name=job.name,
        priority=job.priority,
        attempt=job.attempts + 1,
        error=error_of(job),
        **_reported(job.progress),
        **(_end(job, now=now) if status == "training" else {}),
        **common,
    )


def error_of(job: TrainingJob) -> TrainingError | None:
    """The last thing that went wrong with a job."""
    if not job.problems:
        return None
    return TrainingError(job_id=job.id, **job.problems[-1].model_dump())


def _newest_error(tx: Transaction) -> TrainingError | None:
    ended = tx.find(
        TrainingJob, state=[JobState.FAILED, JobState.REJECTED], newest_first="finished_at", limit=1
    )
    return error_of(ended[0]) if ended else None


def _reported(progress: JobProgress | None) -> dict[str, Any]:
    if progress is None:
        return {"unmeasured_because": NO_REPORT}
    fields = {name: getattr(progress, name) for name in SAME_NAME}
    measured = progress.micro_evaluation
    if measured is None:
        return {
            **fields,
            "total_steps": progress.num_steps,
            "unmeasured_because": progress.unmeasured_because or NO_REPORT,
        }
    return {
        **fields,
        "total_steps": progress.num_steps,
        "gap": measured.gap,
        "gap_state": measured.gap_state,
        "validation_loss": measured.validation_loss,
        "accuracy": measured.training_accuracy,
        "validation_accuracy": measured.validation_accuracy,
        "measured_at_step": measured.step,
        "unmeasured_because": measured.problem,
    }


def _around(surroundings: Surroundings) -> dict[str, Any]:
    return {
        "preview": surroundings.preview,
        "preview_unknown_because": surroundings.preview_unknown_because,
        "queue_velocity": surroundings.velocity,
        "queue_velocity_unknown_because": surroundings.velocity_unknown_because,
        "eta_errors": surroundings.eta_errors,
    }


def _end(job: TrainingJob, *, now: datetime) -> dict[str, Any]:
    expected = forecast(span_left(job, pace=None, now=now), now=now)
    if expected is None:
        return {}
    return {
        "eta_seconds": expected.seconds,
        "eta_low_seconds": expected.low_seconds,
        "eta_high_seconds": expected.high_seconds,
    }


def _state(job: TrainingJob, *, is_alive: bool) -> tuple[TrainingState, str]:
    last = job.problems[-1].message if job.problems else ""
    if job.state is JobState.RUNNING:
        return ("training", "") if is_alive else ("crashed", "its worker stopped reporting")
    if job.state in (JobState.QUEUED, JobState.FAILED) and last:
        return "crashed", last
    return "idle", f"{job.id} {job.state}. {last}".strip()
