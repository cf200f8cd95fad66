"""What can go wrong while a job is trained.

TrainerError                root; `kind` is the word that the supervisor decides by
├── ConfigError             a job file or hyperparameter that cannot be used; names field and value
├── DataError               rows that cannot be trained on
├── ModelError              a model directory that cannot be loaded, or whose template cannot be learnt
├── Diverged                loss, gradient or weights are no longer finite
├── OutOfMemory             one row alone does not fit, or the optimizer does not
├── DiskFull                a checkpoint could not be written
├── Orphaned                the supervisor is gone: nothing more may be said or written
└── PeerLost                another process of this run is gone, or ended it and says why itself
"""

from __future__ import annotations

from typing import ClassVar

from registry.errors import TandemError
from trainer.messages import FailureKind


class TrainerError(TandemError):
    """Root of this room."""

    kind: ClassVar[FailureKind] = "internal"


class ConfigError(TrainerError):
    """A setting that is unknown, malformed or out of range. `field` is its dotted name."""

    kind = "config"

    def __init__(self, message: str, *, field: str, value: object = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.field = field
        self.value = value


class DataError(TrainerError):
    """Rows that cannot be trained on."""

    kind = "data"


class ModelError(TrainerError):
    """A model directory that cannot be loaded, or whose chat template cannot be learnt from."""

    kind = "model"


class Diverged(TrainerError):
    """Loss, gradient or weights are no longer finite. No checkpoint is written of such weights."""

    kind = "diverged"


class OutOfMemory(TrainerError):
    """One row alone does not fit in memory, or the optimizer does not."""

    kind = "out_of_memory"


class DiskFull(TrainerError):
    """A checkpoint could not be written for want of space."""

    kind = "disk"


class Orphaned(TrainerError):
    """The supervisor is gone: nothing more may be said or written."""

    kind = "orphaned"


class PeerLost(TrainerError):
    """Another process of this run is gone, or ended it and says why itself: this one says nothing."""

    kind = "peer_lost"
