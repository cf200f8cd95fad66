"""What runs the models behind the doors: transformers in this process, or vLLM in one of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference.model import TextModel
from inference.server.work import Work


@dataclass(frozen=True)
class Activity:
    """What is under way. `num_cached_tokens` is 0 where only the engine itself knows it."""

    running: tuple[Work, ...]
    num_cached_tokens: int = 0


class Backend(Protocol):
    """Loads releases and answers with them.

    A model lives as long as somebody holds what `load` gave: the one who drops it last frees its memory.
    """

    def load(self, directory: Path) -> TextModel:
        """Verify every file and bring the release up beside what runs; `ReleaseError` with what failed."""

    def has_room_for(self, directory: Path) -> bool:
        """Whether a release fits beside what is loaded now; False where that cannot be known."""

    def submit(self, work: Work) -> None:
        """Take on a request. Its pieces, or one error, go to its `put`."""

    def activity(self) -> Activity:
        """The requests that are generated for at this moment."""

    def close(self) -> None:
        """End every generation and free everything."""
