"""Writes `status/*.json` and the queue folders: what the registry knows, for people and `jq`.

Atomic, strict, never read back.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from config.settings import Settings
from registry import lineage
from registry.calibrations import Calibration, CalibrationOutcome
from registry.errors import ManifestError
from registry.files import write_json
from registry.manifests import read_manifest
from registry.records import Checkpoint, Deployment, TrainingJob
from registry.status_files import (
    CalibrationLine,
    ComparisonLine,
    ConfidenceCalibration,
    LastDeployment,
    ModelComparisons,
)
from registry.store import Registry, Transaction
from workers import judgement_files, queue_folders, training_statuses
from workers.surroundings import Surroundings, read_surroundings

STALE_AFTER_SECONDS = 60.0
MAX_CALIBRATIONS = 50


def refresh(registry: Registry, *, settings: Settings) -> None:
    """Write every status file and the queue folders.

    The registry is read first: no transaction is open while files are written.
    """
    stale = STALE_AFTER_SECONDS
    surroundings = read_surroundings(registry)
    deployed = last_deployment(registry)
    with registry.reading() as tx:
        statuses = {
            "training_status": training_statuses.current(tx, surroundings=surroundings),
            "last_deployment": deployed,
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


def write_training_status(
    directory: Path, *, job: TrainingJob, now: datetime, surroundings: Surroundings | None = None
) -> None:
    """Write `training_status.json` for the job at hand, as its runner knows it."""
    status = training_statuses.of_job(job, now=now, surroundings=surroundings)
    write_status(directory, name="training_status", status=status)


def last_deployment(registry: Registry) -> LastDeployment | None:
    """The newest deployment, whatever became of it. Its manifest is read while no transaction is open."""
    with registry.reading() as tx:
        found = tx.find(Deployment, newest_first="generation", limit=1)
        if not found:
            return None
        newest, now, checkpoint = found[0], tx.now, tx.get(Checkpoint, found[0].checkpoint_id)
    return LastDeployment(
        release_id=newest.id,
        written_at=now,
        stale_after_seconds=STALE_AFTER_SECONDS,
        file_sha256=_hashes(Path(checkpoint.path)),
        **newest.model_dump(include=set(LastDeployment.model_fields) - {"release_id"}),
    )


def _hashes(directory: Path) -> dict[str, str]:
    try:
        files = read_manifest(directory).files
    except ManifestError:
        return {}
    return {name: entry.sha256 for name, entry in sorted(files.items()) if not entry.is_state}


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
        overconfidence=overall.overconfidence if overall else None,
        underconfidence=overall.underconfidence if overall else None,
        ece_before=before.ece if before else None,
        ece_after=after.ece if after else None,
        brier_before=before.brier if before else None,
        brier_after=after.brier if after else None,
        bins=overall.bins if overall else (),
        **calibration.model_dump(include=set(CalibrationLine.model_fields) & set(Calibration.model_fields)),
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
