"""What a tool is told of a run, and how: the seam that every adapter keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
