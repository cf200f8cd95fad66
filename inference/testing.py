"""Builders for tests of this room and of rooms that need a model directory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from inference.model import LoadedModel
from inference.tiny import build_tiny_model
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest

SEALED_AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def seal(directory: Path) -> Path:
    """Write the manifest that makes a model directory a checkpoint or a release."""
    files = list_files(directory)
    manifest = Manifest(
        files=files, weights_sha256=weights_sha256(files), code_version="testing", created_at=SEALED_AT
    )
    write_manifest(directory, manifest=manifest)
    return directory


def build_sealed_tiny_model(directory: Path, *, seed: int = 0) -> Path:
    """The small model of `inference.tiny` with its manifest."""
    return seal(build_tiny_model(directory, seed=seed))


def make_talkative(loaded: LoadedModel, *, seed: int = 1) -> LoadedModel:
    """Change the weights in memory so that greedy replies differ by prompt and end after a few tokens.

    An untrained model with small weights repeats one token for ever, which would hide mistakes in dropping
    finished rows. The output embeddings are untied from the input's; they lose nothing else.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in loaded.model.model.layers.parameters():
            if weight.ndim == 2:
                weight.mul_(10.0)
        head = 0.3 * torch.randn(loaded.model.lm_head.weight.shape, generator=generator)
        head[loaded.end_of_turn_id] *= 2.5
        loaded.model.config.tie_word_embeddings = False
        loaded.model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return loaded
