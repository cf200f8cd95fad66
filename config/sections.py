"""The eight sections of a job, as settings of a host: where each one's key stands in `tandem.toml`.

A key may be named either way, `hyperparameters.learning_rate` or `training.hyperparameters.learning_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config.legacy import NEW_PLACES
from trainer.config.locked import LOCKED_KEYS

# Job key: setting. Hyperparameters and locked values keep their names below `training`.
SETTING_OF: Mapping[str, str] = {
    "profile.name": "training.profile",
    "model.max_length": "training.max_length",
    "data.overlong": "training.overlong",
    "output.num_checkpoints": "training.num_checkpoints",
    "environment.device": "training.device",
    "environment.num_threads": "training.num_threads",
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
NESTED = ("hyperparameters", "locked")


def setting_of(key: str) -> str:
    """The setting that a key of a job's sections stands for; any other key is its own."""
    if key in LOCKED_KEYS:
        return "training.max_length" if key == "max_length" else f"training.locked.{key}"
    if key in SETTING_OF:
        return SETTING_OF[key]
    return f"training.{key}" if key.split(".")[0] in NESTED else key


def new_place(name: str) -> str | None:
    """The setting that a name which once stood at the top level is now; None where it never did."""
    return setting_of(NEW_PLACES[name]) if name in NEW_PLACES else None


def is_locked(setting: str) -> bool:
    """True for what takes `--unlock` to change."""
    return setting == "training.max_length" or setting in {f"training.locked.{key}" for key in LOCKED_KEYS}
