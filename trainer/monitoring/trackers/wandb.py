"""Weights & Biases: offline below `wandb/` unless WANDB_MODE says otherwise; `wandb sync` uploads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.monitoring.tools import ReportedRun

PROJECT = "tandem"


class WandbTracker:
    """One run of the project `tandem`."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: ReportedRun) -> None:
        """A run that goes on has the same id."""
        import wandb

        run.directory.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self._run = wandb.init(
            project=PROJECT,
            id=run.name,
            name=run.name,
            dir=str(run.directory),
            config=dict(run.settings),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """All of a step at once."""
        self._run.log(dict(numbers), step=step)

    def finish(self, *, is_good: bool) -> None:
        """Its exit code says whether the run failed."""
        self._run.finish(exit_code=0 if is_good else 1)
