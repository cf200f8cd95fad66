"""The eight sections of a job, as settings of a host: where each one's key stands in `tandem.toml`.

A key may be named either way, `hyperparameters.learning_rate` or `training.hyperparameters.learning_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from trainer.config.job import DataConfig, EnvironmentConfig, ModelConfig, MonitoringConfig, OutputConfig
from trainer.config.legacy import NEW_PLACES
from trainer.config.locked import LOCKED_KEYS

# Job key: setting. Hyperparameters and locked values keep their names below `training`.
SETTING_OF: Mapping[str, str] = {
    "profile.name": "training.profile",
    "model.max_length": "training.max_length",
    "data.overlong": "training.overlong",
    "data.max_token_cache_bytes": "training.max_token_cache_bytes",
    "output.num_checkpoints": "training.num_checkpoints",
    "output.checkpoint_every_steps": "training.checkpoint_every_steps",
    "output.overlap_writing": "training.overlap_writing",
    "environment.device": "training.device",
    "environment.num_threads": "training.num_threads",
    "environment.gradient_checkpointing": "training.gradient_checkpointing",
    "environment.cross_entropy": "training.cross_entropy",
    "environment.parallel": "training.parallel",
    "monitoring.report_every_seconds": "training.report_every_seconds",
    "monitoring.record_rows": "training.record_rows",
    "monitoring.num_validation_rows": "training.num_validation_rows",
    "monitoring.validate_every_seconds": "training.validate_every_seconds",
    "monitoring.max_validation_share": "training.max_validation_share",
    "monitoring.report_to": "training.report_to",
    "model.path": "training.locked.base_model",
}
# Sections of a job with keys that no setting stands for.
JOB_SECTIONS: Mapping[str, type[BaseModel]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "output": OutputConfig,
    "environment": EnvironmentConfig,
    "monitoring": MonitoringConfig,
}
NESTED = ("hyperparameters", "locked")


def setting_of(key: str) -> str:
    """The setting that a key of a job's sections stands for; any other key is its own."""
    if key in LOCKED_KEYS:
        return "training.max_length" if key == "max_length" else f"training.locked.{key}"
    if key in SETTING_OF:
        return SETTING_OF[key]
    return f"training.{key}" if key.split(".")[0] in NESTED else key


def new_places(path: str) -> list[str]:
    """What settings an unknown dotted name may mean, likeliest first: as a job's key, by its last part."""
    name = path.rpartition(".")[2]
    keys = (path.removeprefix("training."), NEW_PLACES.get(name, ""), f"hyperparameters.{name}")
    return [setting_of(key) for key in keys if setting_of(key) != key]


def advice(name: str) -> str:
    """What to do about a name that is no setting; empty where nothing is known of it.

    It may be one that stands at another place, or a key of a job's sections that a host decides itself.
    """
    place = NEW_PLACES.get(name, name)
    if name in NEW_PLACES and _is_set_by_a_host(place):
        unlock = " --unlock" if is_locked(setting_of(place)) else ""
        return f"Set {setting_of(place)}: `tandem config set {place} VALUE{unlock}`."
    section, _, key = place.partition(".")
    if section in JOB_SECTIONS and key in JOB_SECTIONS[section].model_fields:
        return f"In a job file it is {place}; a host decides it itself."
    return ""


def is_section(setting: str, *, of: type[BaseModel]) -> bool:
    """True for a name that settings stand below."""
    kind: Any = of
    for part in setting.split("."):
        if not _is_model(kind) or part not in kind.model_fields:
            return False
        kind = kind.model_fields[part].annotation
    return _is_model(kind)


def is_locked(setting: str) -> bool:
    """True for what takes `--unlock` to change."""
    return setting == "training.max_length" or setting in {f"training.locked.{key}" for key in LOCKED_KEYS}


def _is_set_by_a_host(place: str) -> bool:
    return place in SETTING_OF or place.split(".")[0] in NESTED


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
