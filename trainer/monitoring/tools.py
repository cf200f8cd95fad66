"""What a run is reported to beside its supervisor: the seam, and which tools there are.

`monitoring.report_to` names them. Each is an extra of tandem: its package is looked for before anything is
loaded, and loaded only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from trainer.config.job import Tool
from trainer.errors import ConfigError
from trainer.monitoring.trackers.mlflow import MlflowTracker
from trainer.monitoring.trackers.tensorboard import TensorBoardTracker
from trainer.monitoring.trackers.trackio import TrackioTracker
from trainer.monitoring.trackers.wandb import WandbTracker

Settings = Mapping[str, str | int | float]


@dataclass(frozen=True)
class ReportedRun:
    """A run as tools know it. A run that goes on bears the same name, and its tool goes on with it."""

    name: str
    directory: Path
    settings: Settings
    resumed_from_step: int | None = None


class Tracker(Protocol):
    """A tool that is told a run's numbers. Whatever it raises ends its part, never the run."""

    def start(self, run: ReportedRun) -> None:
        """Before the first numbers."""

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """Numbers of one step, by names such as `train/loss`."""

    def finish(self, *, is_good: bool) -> None:
        """No more will come; `is_good` is False where the run failed."""


@dataclass(frozen=True)
class _Kind:
    package: str
    make: Callable[[], Tracker]


KINDS: Mapping[Tool, _Kind] = {
    "tensorboard": _Kind("tensorboard", TensorBoardTracker),
    "mlflow": _Kind("mlflow", MlflowTracker),
    "wandb": _Kind("wandb", WandbTracker),
    "trackio": _Kind("trackio", TrackioTracker),
}


def make_trackers(names: Sequence[Tool]) -> dict[str, Tracker]:
    """One of each; `ConfigError` with the command that installs it where a package is missing."""
    missing = [name for name in names if find_spec(KINDS[name].package) is None]
    if missing:
        raise ConfigError(
            f"monitoring.report_to names {', '.join(missing)}, which is not installed.",
            field="monitoring.report_to",
            value=list(names),
            remedy=f"Install it: pip install 'tandem[{','.join(missing)}]'.",
        )
    return {name: KINDS[name].make() for name in names}
