"""Which tools a run may be reported to beside its supervisor.

`monitoring.report_to` names them. Each is an extra of tandem: its package is looked for before anything is
loaded, and loaded only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from trainer.config.job import Tool
from trainer.errors import ConfigError
from trainer.monitoring.seam import Tracker
from trainer.monitoring.trackers.mlflow import MlflowTracker
from trainer.monitoring.trackers.tensorboard import TensorBoardTracker
from trainer.monitoring.trackers.trackio import TrackioTracker
from trainer.monitoring.trackers.wandb import WandbTracker


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
