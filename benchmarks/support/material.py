"""What every training contender gets: a model of some size, and rows whose lengths are spread in some way."""

from __future__ import annotations

import json
import random
import string
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference.tiny import build_tiny_model
from trainer.config.job import JobConfig, check_job
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.models import load_tokenizer

Clock = Callable[[], float]

MAX_LENGTH = 512
NUM_ROWS = 2000
MAX_CHARACTERS = 220  # a turn; a row of two turns stays under MAX_LENGTH

# (hidden size, layers): 0.8, 4 and 9 million parameters
SIZES = {"0.8M": (128, 4), "4M": (256, 6), "9M": (384, 6)}


@dataclass(frozen=True)
class Material:
    """What every contender trains on, and the clock that measures it, in seconds."""

    directory: Path
    model: Path
    rows: Path
    dataset: TokenizedDataset
    tokens_per_batch: int
    clock: Clock = time.perf_counter

    def job(self, **sections: dict[str, Any]) -> JobConfig:
        """The engine's job, in a directory of its own; `sections` add to those given here."""
        job: dict[str, dict[str, Any]] = {
            "model": {"path": str(self.model), "max_length": MAX_LENGTH},
            "data": {"path": str(self.rows)},
            "output": {"checkpoints_dir": tempfile.mkdtemp(dir=self.directory)},
            "hyperparameters": {"num_epochs": 1000, "tokens_per_batch": self.tokens_per_batch},
            "environment": {"device": "cpu", "num_threads": torch.get_num_threads()},
        }
        return check_job({**job, **{name: job.get(name, {}) | more for name, more in sections.items()}})


def make_material(
    directory: Path, *, model: Path, rows: Path, tokens_per_batch: int, clock: Clock = time.perf_counter
) -> Material:
    """Tokenise the rows for this model."""
    encoder = ChatEncoder(load_tokenizer(model))
    dataset = tokenize_file(rows, encoder=encoder, max_length=MAX_LENGTH, overlong="drop")
    return Material(
        directory=directory,
        model=model,
        rows=rows,
        dataset=dataset,
        tokens_per_batch=tokens_per_batch,
        clock=clock,
    )


def make_model(directory: Path, *, size: str) -> Path:
    """An untrained model of one of the sizes."""
    hidden_size, num_layers = SIZES[size]
    return build_tiny_model(directory, hidden_size=hidden_size, num_layers=num_layers)


def write_rows(path: Path, *, lengths: str) -> Path:
    """Letters to be reversed, with turns as long as a distribution says."""
    source, draw = random.Random(0), LENGTHS[lengths]
    with path.open("w") as stream:
        for _ in range(NUM_ROWS):
            num_characters = int(min(MAX_CHARACTERS, max(3, draw(source))))
            text = "".join(source.choices(string.ascii_lowercase, k=num_characters))
            stream.write(json.dumps({"prompt": text, "completion": text[::-1]}) + "\n")
    return path


def _long_tailed(source: random.Random) -> float:
    return source.lognormvariate(3.7, 0.8)


def _even(source: random.Random) -> float:
    return source.uniform(30, 60)


def _two_humps(source: random.Random) -> float:
    return source.uniform(150, 220) if source.random() < 0.1 else source.uniform(5, 25)


# characters a turn: median 40 with a long tail; all about alike; nine short ones to one long one
LENGTHS: dict[str, Callable[[random.Random], float]] = {
    "long-tailed": _long_tailed,
    "even": _even,
    "two humps": _two_humps,
}
