"""What the demo trains on, and where it lies. Loads neither torch nor the word lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Level:
    """Words of a difficulty, by length in letters."""

    name: str
    min_letters: int
    max_letters: int


@dataclass(frozen=True)
class TrainingFile:
    """A file of the demo: the words up to a length, how many rows, on which queue."""

    name: str
    priority: str
    max_letters: int
    num_rows: int


LEVELS = (Level("easy", 3, 5), Level("medium", 6, 7), Level("hard", 8, 10))
# Submitted in this order, low first; they run high, normal, low. Each file holds the shorter words too, so
# that a later job does not forget what an earlier one learnt.
FILES = (
    TrainingFile("words-3-to-10", "low", 10, 18_000),
    TrainingFile("words-3-to-7", "normal", 7, 14_000),
    TrainingFile("words-3-to-5", "high", 5, 14_000),
)


@dataclass(frozen=True)
class Material:
    """Where the demo's files lie."""

    directory: Path

    @property
    def base_model(self) -> Path:
        """A Qwen3ForCausalLM of about a million parameters, untrained."""
        return self.directory / "base-model"

    @property
    def suite(self) -> Path:
        """150 held-out rows."""
        return self.directory / "suite.jsonl"

    def training_file(self, name: str) -> Path:
        """A file to train on."""
        return self.directory / f"{name}.jsonl"
