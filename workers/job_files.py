"""Writes the job file that the trainer reads: every path, every hyperparameter, nothing implied."""

from __future__ import annotations

from pathlib import Path

from config.settings import Settings
from registry.records import Checkpoint, Dataset, Suite, TrainingJob
from trainer.config.job import (
    DataConfig,
    EnvironmentConfig,
    JobConfig,
    ModelConfig,
    MonitoringConfig,
    OutputConfig,
    ProfileConfig,
)
from trainer.config.pinned import read_pinned
from workers.oom_kills import max_part_tokens


def write_job_file(
    job: TrainingJob, *, dataset: Dataset, parent: Checkpoint, settings: Settings, suite: Suite | None = None
) -> Path:
    """Write `run/jobs/<job>.json` and return its path."""
    path = settings.paths.run / "jobs" / f"{job.id}.json"
    config = job_config(job, dataset=dataset, parent=parent, settings=settings, suite=suite)
    content = config.model_dump_json(indent=2) + "\n"
    # Plainly: each attempt writes it anew before it starts the one reader.
    try:
        path.write_text(content, encoding="utf-8")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return path


def job_config(
    job: TrainingJob, *, dataset: Dataset, parent: Checkpoint, settings: Settings, suite: Suite | None = None
) -> JobConfig:
    """What was fixed at submission, on this host's device and directories.

    The active suite is what the gap is measured by: no row of it is ever taken in for training.
    """
    training, pinned = settings.training, read_pinned(job.hyperparameters)
    return JobConfig(
        job_id=job.id,
        parent_checkpoint_id=parent.id,
        hyperparameters=pinned.hyperparameters,
        profile=ProfileConfig(name=pinned.profile),
        locked=training.locked,
        model=ModelConfig(path=parent.path, max_length=job.max_length or training.max_length),
        data=DataConfig(
            path=dataset.path,
            dataset_id=dataset.id,
            overlong=pinned.overlong,
            token_cache_dir=settings.paths.token_cache,
            max_token_cache_bytes=training.max_token_cache_bytes,
        ),
        output=OutputConfig(
            checkpoints_dir=str(settings.paths.checkpoints / job.id),
            num_checkpoints=training.num_checkpoints,
            checkpoint_every_steps=training.checkpoint_every_steps,
            overlap_writing=training.overlap_writing,
        ),
        environment=_environment(
            job, settings=settings, tokens_per_batch=pinned.hyperparameters.tokens_per_batch
        ),
        monitoring=_monitoring(settings, suite=suite),
        resume=True,
    )


def _environment(job: TrainingJob, *, settings: Settings, tokens_per_batch: int) -> EnvironmentConfig:
    training = settings.training
    return EnvironmentConfig(
        device=training.device,
        num_threads=training.num_threads,
        gradient_checkpointing=training.gradient_checkpointing,
        cross_entropy=training.cross_entropy,
        parallel=training.parallel,
        max_part_tokens=max_part_tokens(
            job, tokens_per_batch=tokens_per_batch, num_processes=training.num_processes
        ),
    )


def _monitoring(settings: Settings, *, suite: Suite | None) -> MonitoringConfig:
    training = settings.training
    return MonitoringConfig(
        report_every_seconds=training.report_every_seconds,
        record_rows=training.record_rows,
        validation_path=None if suite is None else suite.path,
        num_validation_rows=training.num_validation_rows,
        validate_every_seconds=training.validate_every_seconds,
        max_validation_share=training.max_validation_share,
        report_to=training.report_to,
        logs_dir=settings.paths.logs,
    )
