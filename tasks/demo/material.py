"""Makes what the demo works on: `python -m tasks.demo.material DIRECTORY`.

A process of its own, so that it runs while the stack starts and leaves no torch behind in the demo.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from inference.tiny import build_tiny_model
from tasks.demo.words import FILES, write_suite, write_training_file


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


def make_material(material: Material) -> None:
    """Write the suite, the training files and the base model."""
    held_out = write_suite(material.suite)
    for file in FILES:
        write_training_file(material.training_file(file.name), file=file, held_out=held_out)
    build_tiny_model(material.base_model)


if __name__ == "__main__":
    make_material(Material(Path(sys.argv[1])))
