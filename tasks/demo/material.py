"""Makes what the demo works on: `python -m tasks.demo.material DIRECTORY`.

A process of its own, so that it runs while the stack starts and leaves no torch behind in the demo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from inference.tiny import build_tiny_model
from tasks.demo.plan import FILES, Material
from tasks.demo.words import instruction, write_suite, write_training_file


def make_material(material: Material) -> None:
    """Write the suite, the training files and the base model."""
    held_out = write_suite(material.suite)
    for file in FILES:
        write_training_file(material.training_file(file.name), file=file, held_out=held_out)
    build_tiny_model(material.base_model, phrases=[instruction()])


if __name__ == "__main__":
    make_material(Material(Path(sys.argv[1])))
