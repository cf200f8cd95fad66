"""A training job's configuration: what the supervisor writes into JOB.json and the trainer reads.

Unknown keys are refused, numbers are finite. Nothing here loads torch, so that a worker can check a
submission in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import Field, ValidationError

from registry.records import Record
from trainer.config.hyperparameters import MAX_TOKENS, Hyperparameters
from trainer.config.problems import config_error
from trainer.config.section import Section
from trainer.cross_entropy import CrossEntropy
from trainer.errors import ConfigError

M = TypeVar("M", bound=Record)

Overlong = Literal["drop", "truncate", "reject"]
Parallel = Literal["auto", "none", "ddp", "fsdp"]
Switch = Literal["auto", "on", "off"]
ADAPTER = "hyperparameters.adapter"
DEVICE = "^(auto|cpu|cuda(:(0|[1-9][0-9]?))?)$"  # a card by its number, from 0 to 99
Tool = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class ModelConfig(Section):
    """Where the run starts from. `dtype` is what the arithmetic uses; weights are kept in float32."""

    path: Path
    max_length: int = Field(default=4096, ge=2, description="tokens of a row, chat template included")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where CUDA supports it, else float32"
    )


class ProfileConfig(Section):
    """How rows are rewritten before they are learnt; inference does the same with what it asks."""

    name: str = Field(
        default="plain_sft",
        min_length=1,
        max_length=80,
        description="plain_sft, emoji_think, regime3, or one that an installed package brings",
    )


class LockedConfig(Section):
    """What must not change by accident: the run is refused where the model is another. Unset is unchecked."""

    base_model: str | None = Field(default=None, description="directory of the model that all descends from")
    model_name: str | None = Field(default=None, description="such as Qwen3-0.6B: must be that of model.path")
    model_architecture: str | None = Field(default=None, description="such as Qwen3ForCausalLM")
    max_length: int | None = Field(default=None, ge=2, description="tokens; must be model.max_length")
    vocab_size: int | None = Field(default=None, ge=1, description="rows of the model's embedding")


class DataConfig(Section):
    """What is learnt."""

    path: Path
    dataset_id: str | None = None
    overlong: Overlong = Field(
        default="drop",
        description="rows over max_length: left out, cut off behind max_length tokens (both counted), or the "
        "job is refused",
    )
    token_cache_dir: Path | None = Field(default=None, description="where tokens are kept between runs")
    max_token_cache_bytes: int = Field(
        default=20_000_000_000, ge=0, description="of all files there; the least recently used go first"
    )


class OutputConfig(Section):
    """Where checkpoints go, and when. The last step always has one."""

    checkpoints_dir: Path
    checkpoint_every_steps: int | None = Field(default=None, ge=1, description="instead of num_checkpoints")
    num_checkpoints: int = Field(default=1, ge=1, description="evenly spread, the last one included")
    overlap_writing: Switch = Field(
        default="auto",
        description="steps go on while a copy of weights and moments, in the computer's memory, is written; "
        "auto: on, but off with several processes",
    )


class EnvironmentConfig(Section):
    """The machine."""

    device: str = Field(
        default="auto",
        pattern=DEVICE,
        description="auto, cpu, cuda, or a card by its number from 0 to 99, such as cuda:1",
    )
    num_threads: int = Field(default=1, ge=1, le=1024, description="CPU threads")
    gradient_checkpointing: Switch = Field(
        default="auto", description="less memory for a third more work; auto: on for CUDA, off for a CPU"
    )
    cross_entropy: CrossEntropy = Field(
        default="auto",
        description="plain: logits of all answers at once; chunked: of a few at a time; liger: fused CUDA "
        "kernels; auto: chunked where there is more than one chunk",
    )
    batching: Literal["auto", "buckets", "packed"] = Field(
        default="auto",
        description="rows of like length padded to the longest, or any rows end to end without padding; "
        "auto: packed in bfloat16 on CUDA from Ampere on, where the model attends to all that stands before",
    )
    parallel: Parallel = Field(
        default="auto",
        description="how several processes share a job: ddp, a whole model each; fsdp, a part of each weight "
        "each; none refuses it; auto is ddp",
    )
    max_part_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="a step takes its batch in parts of at most so many tokens, or a row, in each process; "
        "unset until memory runs out",
    )


class MonitoringConfig(Section):
    """How often the run is reported, to whom, what it is measured by, and whether it is traced."""

    report_every_seconds: float = Field(default=1.0, ge=0, description="0 reports every step")
    record_rows: bool = Field(default=False, description="write each step's row numbers to rows.jsonl")
    validation_path: Path | None = Field(
        default=None, description="JSONL rows that are not learnt: the gap is measured by a few of them"
    )
    num_validation_rows: int = Field(
        default=128, ge=8, le=10_000, description="so many of them, always the same"
    )
    validate_every_seconds: float = Field(default=30.0, ge=0, description="at the soonest")
    max_validation_share: float = Field(
        default=0.01, ge=0, le=0.5, description="of the time, for all measuring together; 0 measures nothing"
    )
    report_to: tuple[Tool, ...] = Field(
        default=(), description="tools that are told the numbers: tensorboard, mlflow, wandb, trackio"
    )
    logs_dir: Path | None = Field(
        default=None, description="where such tools write; beside output.checkpoints_dir if unset"
    )


class JobConfig(Section):
    """One job, complete: every path, every number, nothing implied."""

    job_id: str | None = None
    parent_checkpoint_id: str | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    profile: ProfileConfig = ProfileConfig()
    locked: LockedConfig = LockedConfig()
    model: ModelConfig
    data: DataConfig
    output: OutputConfig
    environment: EnvironmentConfig = EnvironmentConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    resume: bool = Field(default=True, description="go on from the newest valid checkpoint of this run")


def check_hyperparameters(values: Mapping[str, Any]) -> Hyperparameters:
    """A submission's overrides over the defaults; `ConfigError` names field, value and remedy."""
    return _check(Hyperparameters, value=dict(values), prefix="hyperparameters")


def check_job(value: Mapping[str, Any]) -> JobConfig:
    """A job from plain values; `ConfigError` names field, value and remedy."""
    return _check(JobConfig, value=dict(value), prefix="")


def read_job(path: Path, *, overrides: Sequence[str] = ()) -> JobConfig:
    """A job from its JSON file, `section.key=value` over it; `ConfigError` where it cannot be used."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}.", field="", remedy="Check the path.") from None
    value = _parse_object(text, path=path)
    for override in overrides:
        _put(value, override=override)
    return check_job(value)


def _put(job: dict[str, Any], *, override: str) -> None:
    """Values are JSON where they can be read as it, else the text itself."""
    key, separator, text = override.partition("=")
    *sections, name = key.split(".")
    if not separator or not all((*sections, name)):
        raise ConfigError(
            f"--set {override!r} is not section.key=value.",
            field=key,
            remedy="For example --set hyperparameters.learning_rate=1e-4.",
        )
    part = job
    for depth, section in enumerate(sections, start=1):
        place = ".".join(sections[:depth])
        part[section] = _opened(part.get(section), place=place, override=override)
        part = part[section]
    try:
        part[name] = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        part[name] = text


def _opened(found: Any, *, place: str, override: str) -> dict[str, Any]:
    """What stands at a place as a section that keys can be put into; an adapter may be named by a word."""
    if found is None:
        return {}
    if place == ADAPTER and isinstance(found, str):
        return {"kind": found}
    if not isinstance(found, dict):
        raise ConfigError(
            f"--set {override!r}: {place} is no section.",
            field=place,
            value=found,
            remedy=f"Set {place} itself.",
        )
    return found


def _check(model: type[M], *, value: dict[str, Any], prefix: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise config_error(error, model=model, prefix=prefix) from None


def _parse_object(text: str, *, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not valid JSON: {error}.", field="", remedy="NaN and Infinity are not JSON either."
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a job is a JSON object, not {type(value).__name__}.", field="")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
