"""Trackio: a database below `trackio/` that `trackio show` reads, with TRACKIO_DIR set to that directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.monitoring.tools import ReportedRun

PROJECT = "tandem"


class TrackioTracker:
    """Local: without a space or server named, it uploads nothing."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: ReportedRun) -> None:
        """A run that goes on has the same name."""
        directory = run.directory / "trackio"
        directory.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(directory))  # it reads this once, when it is imported
        import trackio

        self._run = trackio.init(
            project=PROJECT, name=run.name, config=dict(run.settings), resume="allow", embed=False
        )

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """All of a step at once."""
        self._run.log(dict(numbers), step=step)

    def finish(self, *, is_good: bool) -> None:
        """It has no word for a run that failed."""
        del is_good
        self._run.finish()
