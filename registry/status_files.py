"""Contracts of `status/*.json`: projections for people, `jq` and dashboards. Never read back as truth."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from registry.calibrations import ReliabilityBin
from registry.progress import (
    DeviceReading,
    EtaError,
    GapState,
    Preview,
    QueueVelocity,
    TrainingAlert,
    TrainingError,
)
from registry.records import Estimate, Lead, Record
from registry.reports import AccuracyChange
from registry.verdicts import Drift, Power, SliceVerdict

PartState = Literal["up", "down", "unknown"]
TrainingState = Literal["training", "idle", "crashed", "unknown"]


class StatusFile(Record):
    """Every status file says when it was written and from when on it proves nothing."""

    written_at: AwareDatetime
    stale_after_seconds: float = Field(gt=0)


class TrainingStatus(StatusFile):
    """`training_status.json`. `crashed` as soon as the trainer or its worker stopped reporting."""

    status: TrainingState
    job_id: str | None = None
    name: str | None = None
    priority: str | None = None
    attempt: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    smoothed_loss: float | None = Field(default=None, description="mean of the last 50 steps")
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    average_tokens_per_second: float | None = Field(default=None, description="since this attempt began")
    gap: Estimate | None = Field(default=None, description="validation minus training loss, nats")
    gap_state: GapState | None = None
    validation_loss: Estimate | None = None
    accuracy: Estimate | None = Field(default=None, description="of answer tokens of rows it has learnt")
    validation_accuracy: Estimate | None = Field(default=None, description="of those of held-out rows")
    measured_at_step: int | None = Field(default=None, description="gap, validation loss and accuracies")
    unmeasured_because: str = ""
    alerts: tuple[TrainingAlert, ...] = ()
    num_unused_rows: int | None = Field(default=None, description="rows that no step has used yet")
    eta_seconds: float | None = None
    eta_low_seconds: float | None = None
    eta_high_seconds: float | None = None
    eta_errors: tuple[EtaError, ...] = Field(default=(), description="how far off past ETAs were")
    preview: Preview | None = None
    preview_unknown_because: str = ""
    queue_velocity: QueueVelocity | None = None
    queue_velocity_unknown_because: str = ""
    device: DeviceReading | None = None
    error: TrainingError | None = None
    reported_at: AwareDatetime | None = None
    reason: str = ""


class PartStatus(Record):
    """One process or service: is it up, since when is that known, what says so."""

    name: str
    state: PartState
    detail: str = ""
    observed_at: AwareDatetime


class Forecast(Record):
    """When something is expected, with its 95 % interval; the interval is unknown after one measurement."""

    seconds: float = Field(ge=0)
    low_seconds: float | None = Field(default=None, ge=0)
    high_seconds: float | None = Field(default=None, ge=0)
    num_samples: int = Field(ge=1)
    at: AwareDatetime


class QueuedJob(Record):
    """A job that waits: its place over all queues, and when it is expected to begin."""

    job_id: str
    name: str
    place: int = Field(ge=1)
    start: Forecast | None
    start_unknown_because: str = ""


class QueueStatus(Record):
    """One queue: rows that wait by the registry, messages that wait by Redis; the first jobs of it."""

    name: str
    num_waiting: int = Field(ge=0)
    num_messages: int | None = Field(default=None, ge=0)
    oldest_age_seconds: float | None = Field(default=None, ge=0)
    first_jobs: tuple[QueuedJob, ...] = ()


class CheckpointStatus(Record):
    """A line of the checkpoint table."""

    id: str
    state: str
    step: int
    job_id: str | None
    loss: Estimate | None = None
    accuracy: Estimate | None = None
    accuracy_by_difficulty: dict[str, Estimate] = Field(default_factory=dict)
    verdict: str | None = None
    verdict_reasons: tuple[str, ...] = ()
    rank: int | None = None
    is_served: bool = False
    created_at: AwareDatetime


class JobStatus(Record):
    """A line of the job table."""

    id: str
    name: str
    state: str
    priority: str
    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    attempts: int = 0
    reason: str = ""
    age_seconds: float | None = None
    eta: Forecast | None = None
    place: int | None = None
    start: Forecast | None = None
    start_unknown_because: str = ""


class ServedStatus(Record):
    """What the inference server itself says it answers with, and what the registry thinks."""

    release_id: str | None
    checkpoint_id: str | None
    reported_by_server: str | None
    agrees: bool | None
    observed_at: AwareDatetime


class SystemStatus(StatusFile):
    """`system_status.json` and `tandem status --json`."""

    home: str
    parts: tuple[PartStatus, ...]
    training: TrainingStatus
    queues: tuple[QueueStatus, ...]
    jobs: tuple[JobStatus, ...]
    checkpoints: tuple[CheckpointStatus, ...]
    served: ServedStatus


class LastDeployment(StatusFile):
    """`last_deployment.json`: the newest deployment, whatever became of it.

    `release_path` is on the host that serves; it and the numbers are empty until the release was verified
    there. `weights_sha256` is the checkpoint's identity, `file_sha256` the hash of each of its model's files,
    which are what travels.
    """

    release_id: str
    generation: int
    checkpoint_id: str
    state: str
    weights_sha256: str
    file_sha256: dict[str, str] = Field(
        default_factory=dict, description="empty where the checkpoint's files are gone"
    )
    release_path: str = ""
    num_files: int = Field(default=0, ge=0)
    num_bytes: int = Field(default=0, ge=0)
    reason: str
    problem: str = ""
    duration_seconds: float | None = None
    started_at: AwareDatetime
    activated_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = Field(default=None, description="failed, superseded or rolled back")


class RegressionLine(Record):
    """One checkpoint's verdict in `regression_monitoring.json`."""

    checkpoint_id: str
    suite_id: str
    baseline_checkpoint_id: str | None
    verdict: str
    reasons: tuple[str, ...]
    num_pairs: int
    loss_increase: Estimate | None = None
    accuracy_change: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    slices: tuple[SliceVerdict, ...] = ()
    num_small_slices: int = 0
    drift: Drift | None = None
    power: Power | None = None
    decided_at: AwareDatetime


class AlertLine(Record):
    """Something that a person should know of a checkpoint; told once."""

    level: str
    checkpoint_id: str
    suite_id: str
    message: str
    raised_at: AwareDatetime


class RegressionMonitoring(StatusFile):
    """`regression_monitoring.json`: the newest verdicts, and the first anchor of the active suite.

    The counts are of all verdicts, also of those that are too old to be listed.
    """

    verdicts: tuple[RegressionLine, ...]
    num_passed: int = Field(default=0, ge=0)
    num_watched: int = Field(default=0, ge=0)
    num_regressed: int = Field(ge=0)
    num_unknown: int = Field(ge=0)
    first_anchor_checkpoint_id: str | None = None
    alerts: tuple[AlertLine, ...] = ()


class AccuracyLine(Record):
    """One checkpoint's report in `automated_testing.json`; what flipped, by row id."""

    checkpoint_id: str
    suite_id: str
    baseline_checkpoint_id: str | None
    total: AccuracyChange | None
    levels: tuple[AccuracyChange, ...]
    gained_row_ids: tuple[str, ...]
    lost_row_ids: tuple[str, ...]
    level: str | None
    reasons: tuple[str, ...]
    made_at: AwareDatetime


class AccuracyPoint(Record):
    """One checkpoint in the history of accuracy: of all rows, and by difficulty.

    A row without a known answer counts as wrong; where there are no others the accuracy is None.
    """

    checkpoint_id: str
    step: int
    accuracy: Estimate | None
    num_unknown: int = Field(default=0, ge=0)
    accuracy_by_difficulty: dict[str, Estimate]
    created_at: AwareDatetime


class AutomatedTesting(StatusFile):
    """`automated_testing.json`: newest report first; the history on the active suite, oldest first."""

    suite_id: str | None
    reports: tuple[AccuracyLine, ...]
    history: tuple[AccuracyPoint, ...]
    alerts: tuple[AlertLine, ...]
    note: str = ""


class CalibrationLine(Record):
    """One checkpoint in `confidence_calibration.json`.

    `ece`, `confidence_gap` and its two parts, by bins, are the model's own, over all answers; before and
    after are of the other half than the map was fitted on.
    """

    checkpoint_id: str
    suite_id: str
    outcome: str
    reason: str
    map_kind: str | None
    temperature: Estimate | None = None
    num_examples: int
    num_held_out: int
    ece: Estimate | None = None
    adaptive_ece: Estimate | None = None
    brier: Estimate | None = None
    confidence_gap: Estimate | None = None
    overconfidence: Estimate | None = None
    underconfidence: Estimate | None = None
    ece_before: Estimate | None = None
    ece_after: Estimate | None = None
    brier_before: Estimate | None = None
    brier_after: Estimate | None = None
    bins: tuple[ReliabilityBin, ...] = ()
    decided_at: AwareDatetime


class ConfidenceCalibration(StatusFile):
    """`confidence_calibration.json`: newest calibration first."""

    calibrations: tuple[CalibrationLine, ...]
    num_mapped: int = Field(ge=0)
    num_unknown: int = Field(ge=0)


class ComparisonLine(Record):
    """One checkpoint in `model_comparisons.json`."""

    rank: int
    checkpoint_id: str
    evaluation_id: str
    score: Estimate
    loss: Estimate
    accuracy: Estimate
    terms: dict[str, float]
    is_tied_with_best: bool
    is_on_front: bool
    lead: Lead | None


class ModelComparisons(StatusFile):
    """`model_comparisons.json`: the newest ranking, best first; empty with a note below three checkpoints."""

    ranking_id: str | None
    served_checkpoint_id: str | None = None
    entries: tuple[ComparisonLine, ...]
    weights: dict[str, float]
    note: str = ""
    made_at: AwareDatetime | None
