"""Sealed checkpoints of a few bytes, with training state beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.manifests import Manifest, list_files, weights_sha256, write_manifest
from registry.testing import START
from tests.deploy.far import FarHost

Seal = Callable[..., Path]


@pytest.fixture
def seal(tmp_path: Path) -> Seal:
    """Make a checkpoint whose weights are the given bytes."""

    def make(name: str = "checkpoint", *, weights: bytes = b"weights") -> Path:
        directory = tmp_path / name
        (directory / "tokenizer").mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        (directory / "tokenizer" / "vocab.json").write_text("[]")
        (directory / "model.safetensors").write_bytes(weights)
        (directory / "training_state.safetensors").write_bytes(b"moments" * 1000)
        files = list_files(directory)
        manifest = Manifest(
            files=files, weights_sha256=weights_sha256(files), code_version="test", created_at=START
        )
        write_manifest(directory, manifest=manifest)
        return directory

    return make


@pytest.fixture
def far(tmp_path: Path) -> FarHost:
    """A host of its own directory, behind a line in memory."""
    return FarHost(tmp_path / "far")
