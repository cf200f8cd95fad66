"""Small models for benchmarks of inference: replies that vary, at a vocabulary of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inference.model import LoadedModel, load_model
from inference.testing import build_sealed_tiny_model, make_talkative

# What the questions of a benchmark are made of.
WORDS = [
    "sun",
    "stone",
    "river",
    "mountain",
    "leaf",
    "cold",
    "wind",
    "tree",
    "house",
    "light",
    "bread",
    "water",
]


def talkative_model(directory: Path, *, vocabulary: int | None, num_threads: int) -> LoadedModel:
    """0.8 million parameters, on the CPU; with a vocabulary of that many tokens, if given."""
    loaded = load_model(build_sealed_tiny_model(directory / "model"), device="cpu", num_threads=num_threads)
    make_talkative(loaded)
    if vocabulary is not None:
        with torch.no_grad():
            _widen(loaded.model, vocabulary=vocabulary)
    return loaded


def _widen(model: Any, *, vocabulary: int) -> None:
    """More tokens that never come: the cost of a large vocabulary, with the same answers."""
    for get, put in (
        (model.get_input_embeddings, model.set_input_embeddings),
        (model.get_output_embeddings, model.set_output_embeddings),
    ):
        old = get().weight
        new = torch.zeros(vocabulary, old.shape[1])
        new[: len(old)] = old
        layer: Any = (
            torch.nn.Embedding(vocabulary, old.shape[1], _weight=new)
            if get == model.get_input_embeddings
            else torch.nn.Linear(old.shape[1], vocabulary, bias=False)
        )
        layer.weight = torch.nn.Parameter(new, requires_grad=False)
        put(layer)
    model.config.vocab_size = vocabulary
