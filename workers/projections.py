"""Writes `status/*.json` and the queue folders: what the registry knows, for people and `jq`.

Atomic, strict, never read back.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from config.settings import Settings
from registry import hosts, lineage, queue
from registry.calibrations import Calibration, CalibrationOutcome
from registry.files import write_json
from registry.records import Deployment, Lease, TrainingJob
from registry.states import JobState
from registry.status_files import (
    CalibrationLine,
    ComparisonLine,
    ConfidenceCalibration,
    LastDeployment,
    ModelComparisons,
    TrainingState,
    TrainingStatus,
)
from registry.store import Registry, Transaction
from workers import judgement_files, queue_folders

# Two heartbeats and a half: with a sweep each 30 s, a dead trainer reads `crashed` within 60 s.
CRASHED_AFTER_SECONDS = 25.0
STALE_AFTER_SECONDS = 60.0
MAX_CALIBRATIONS = 50


def refresh(registry: Registry, *, settings: Settings) -> None:
    """Write every status file and the queue folders.

    The registry is read first: no transaction is open while files are written.
    """
    stale = STALE_AFTER_SECONDS
    with registry.reading() as tx:
        statuses = {
            "training_status": current_training_status(tx),
            "last_deployment": last_deployment(tx),
            "regression_monitoring": judgement_files.regression_monitoring(tx, stale_after_seconds=stale),
            "automated_testing": judgement_files.automated_testing(tx, stale_after_seconds=stale),
            "confidence_calibration": confidence_calibration(tx),
            "model_comparisons": model_comparisons(tx),
        }
    for name, status in statuses.items():
        if status is not None:
            write_status(settings.paths.status, name=name, status=status)
    queue_folders.refresh(registry, settings=settings)


def write_status(directory: Path, *, name: str, status: BaseModel) -> None:
    """Write one status file atomically; the registry gives it again after a power cut."""
    write_json(directory / f"{name}.json", value=status.model_dump(mode="json"), is_durable=False)


def write_training_status(directory: Path, *, job: TrainingJob, now: datetime) -> None:
    """Write `training_status.json` for the job at hand, as its runner knows it."""
    write_status(directory, name="training_status", status=training_status(job, now=now))


def training_status(job: TrainingJob | None, *, now: datetime, is_alive: bool = True) -> TrainingStatus:
    """What a job's row says of training; `is_alive` is False where its lease is no longer renewed."""
    common = {"written_at": now, "stale_after_seconds": CRASHED_AFTER_SECONDS}
    if job is None:
        return TrainingStatus(status="idle", reason="no job is running", **common)
    status, reason = _training_state(job, is_alive=is_alive)
    progress = job.progress
    fields = {} if progress is None else progress.model_dump(exclude={"num_steps", "num_tokens"})
    return TrainingStatus(
        status=status,
        reason=reason,
        job_id=job.id,
        name=job.name,
        priority=job.priority,
        attempt=job.attempts + 1,
        total_steps=None if progress is None else progress.num_steps,
        eta_seconds=_eta_seconds(job) if status == "training" else None,
        **fields,
        **common,
    )


def current_training_status(tx: Transaction) -> TrainingStatus:
    """Training as the registry knows it: the running job, or why none runs."""
    running = queue.running(tx)
    if running:
        job = running[0]
        lease = tx.seek(Lease, queue.resource_of(job.id))
        age = None if lease is None else (tx.now - lease.renewed_at).total_seconds()
        return training_status(job, now=tx.now, is_alive=age is not None and age < CRASHED_AFTER_SECONDS)
    waiting = queue.waiting(tx)
    crashed = next((job for job in waiting if job.problems), None)
    status = training_status(crashed, now=tx.now)
    held = hosts.standstill(tx)
    if not held:
        return status
    return status.changed(reason=held if crashed is None else f"{status.reason} Now {held}")


def last_deployment(tx: Transaction) -> LastDeployment | None:
    """The newest deployment, whatever became of it."""
    found = tx.find(Deployment, newest_first="generation", limit=1)
    if not found:
        return None
    newest = found[0]
    return LastDeployment(
        release_id=newest.id,
        written_at=tx.now,
        stale_after_seconds=STALE_AFTER_SECONDS,
        **newest.model_dump(include=set(LastDeployment.model_fields) - {"release_id"}),
    )


def confidence_calibration(tx: Transaction) -> ConfidenceCalibration:
    """Calibrations, newest first."""
    found = tx.find(Calibration, newest_first="decided_at", limit=MAX_CALIBRATIONS)
    return ConfidenceCalibration(
        written_at=tx.now,
        stale_after_seconds=STALE_AFTER_SECONDS,
        calibrations=tuple(calibration_line(calibration) for calibration in found),
        num_mapped=sum(one.outcome is CalibrationOutcome.MAPPED for one in found),
        num_unknown=sum(one.outcome is CalibrationOutcome.UNKNOWN for one in found),
    )


def calibration_line(calibration: Calibration) -> CalibrationLine:
    """What people want to know of a calibration."""
    overall, before, after = calibration.overall, calibration.before, calibration.after
    return CalibrationLine(
        map_kind=calibration.map.kind if calibration.map else None,
        temperature=calibration.map.temperature if calibration.map else None,
        ece=overall.ece if overall else None,
        adaptive_ece=overall.adaptive_ece if overall else None,
        brier=overall.brier if overall else None,
        confidence_gap=overall.confidence_gap if overall else None,
        ece_before=before.ece if before else None,
        ece_after=after.ece if after else None,
        bins=overall.bins if overall else (),
        **calibration.model_dump(
            include={"checkpoint_id", "outcome", "reason", "num_examples", "num_held_out", "decided_at"}
        ),
    )


def model_comparisons(tx: Transaction) -> ModelComparisons:
    """The newest ranking on the active suite."""
    suite = lineage.active_suite(tx)
    ranking = None if suite is None else lineage.newest_ranking(tx, suite_id=suite.id)
    common = {"written_at": tx.now, "stale_after_seconds": STALE_AFTER_SECONDS}
    if ranking is None:
        note = "no suite is active" if suite is None else "no ranking was made yet"
        return ModelComparisons(ranking_id=None, entries=(), weights={}, note=note, made_at=None, **common)
    return ModelComparisons(
        ranking_id=ranking.id,
        served_checkpoint_id=ranking.served_checkpoint_id,
        entries=tuple(ComparisonLine.model_validate(entry.model_dump()) for entry in ranking.entries),
        weights=ranking.weights,
        note=ranking.note,
        made_at=ranking.made_at,
        **common,
    )


def _training_state(job: TrainingJob, *, is_alive: bool) -> tuple[TrainingState, str]:
    last = job.problems[-1].message if job.problems else ""
    if job.state is JobState.RUNNING:
        return ("training", "") if is_alive else ("crashed", "its worker stopped reporting")
    if job.state in (JobState.QUEUED, JobState.FAILED) and last:
        return "crashed", last
    return "idle", f"{job.id} {job.state}. {last}".strip()


def _eta_seconds(job: TrainingJob) -> float | None:
    """From measured speed and the mean size of a step so far; None before the first one."""
    progress = job.progress
    if progress is None or progress.step == 0 or not progress.tokens_per_second:
        return None
    tokens_per_step = progress.num_tokens / progress.step
    return tokens_per_step * (progress.num_steps - progress.step) / progress.tokens_per_second
