"""The settings of the training worker, and of the trainer that it starts."""

from __future__ import annotations

from pydantic import Field

from config.closed import Section
from config.overrides import Overrides
from registry.states import Priority
from trainer.config.job import DEVICE, LockedConfig, Overlong, Parallel, Switch, Tool
from trainer.cross_entropy import CrossEntropy


class TrainingSettings(Section):
    """The training worker and the trainer that it starts."""

    queues: tuple[Priority, ...] = tuple(Priority)
    device: str = Field(default="auto", pattern=DEVICE)
    num_threads: int = Field(default=1, ge=1, description="CPU threads of the trainer")
    cross_entropy: CrossEntropy = Field(
        default="auto", description="auto, plain, chunked or liger: how the loss is computed"
    )
    num_processes: int = Field(
        default=1, ge=1, le=64, description="that share each job, one a card; see training.parallel"
    )
    parallel: Parallel = Field(
        default="auto", description="how they share it: ddp, whole models; fsdp, parts; auto is ddp"
    )
    gradient_checkpointing: Switch = Field(
        default="auto", description="less memory for a third more work; auto: on for CUDA, off for a CPU"
    )
    overlap_writing: Switch = Field(
        default="auto",
        description="steps go on while a copy of the checkpoint is written; auto: on for one process",
    )
    max_length: int = Field(default=4096, ge=16, description="tokens of a row, chat template included")
    num_checkpoints: int = Field(default=2, ge=1, description="a job, the last one included")
    checkpoint_every_steps: int | None = Field(default=None, ge=1, description="instead of num_checkpoints")
    profile: str = Field(
        default="plain_sft", min_length=1, max_length=80, description="of jobs that name none"
    )
    overlong: Overlong = Field(default="drop", description="rows over max_length: drop, truncate or reject")
    locked: LockedConfig = LockedConfig()
    hyperparameters: Overrides = Field(default_factory=dict, description="defaults of every job")
    report_every_seconds: float = Field(default=1.0, gt=0, le=10)
    record_rows: bool = Field(default=False, description="trace which rows each step learnt from")
    # 128 rows: an interval of about a tenth of a nat. 1 %: with status, control and checkpoints under 2 %.
    num_validation_rows: int = Field(
        default=128, ge=8, le=10_000, description="of the active suite: the gap is measured by them"
    )
    validate_every_seconds: float = Field(default=30.0, ge=0, description="the gap, at the soonest")
    max_validation_share: float = Field(
        default=0.01, ge=0, le=0.5, description="of a run's time for the gap; 0 measures none"
    )
    report_to: tuple[Tool, ...] = Field(
        default=(), description="told a run's numbers too: tensorboard, mlflow, wandb, trackio"
    )
    max_token_cache_bytes: int = Field(
        default=20_000_000_000, ge=0, description="tokens kept between runs; 0 keeps none"
    )
    # Shorter loses jobs to a slow disk; longer leaves a dead host's job lying (design, section 6).
    lease_seconds: float = Field(default=60.0, ge=3)
    heartbeat_seconds: float = Field(default=10.0, gt=0, description="six chances to renew a lease")
    stop_grace_seconds: float = Field(default=60.0, gt=0, description="to save a checkpoint at shutdown")
