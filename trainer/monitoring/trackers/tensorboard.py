"""TensorBoard: an event file below `tensorboard/` that `tensorboard --logdir` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.monitoring.tools import ReportedRun


class TensorBoardTracker:
    """Writes files; nothing leaves the machine."""

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, run: ReportedRun) -> None:
        """Steps after the one that a run goes on from are hidden where they were written before."""
        from torch.utils.tensorboard import SummaryWriter

        purge = None if run.resumed_from_step is None else run.resumed_from_step + 1
        directory = run.directory / "tensorboard" / run.name
        self._writer = SummaryWriter(log_dir=str(directory), purge_step=purge)
        self._writer.add_text("settings", json.dumps(dict(run.settings)), global_step=0)

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """A scalar each."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def finish(self, *, is_good: bool) -> None:
        """Close the file."""
        del is_good
        self._writer.close()
