"""Ruins a checkpoint on purpose: the demo's proof that the regression monitor looks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

NOISE_SHARE = 2.0


def ruin(source: Path, *, into: Path, seed: int = 0) -> Path:
    """Copy a model directory with noise added to every weight matrix: twice each one's own spread."""
    rng = np.random.default_rng(seed)
    shutil.copytree(source, into, ignore=shutil.ignore_patterns("training_state*", "manifest.json"))
    weights_file = into / "model.safetensors"
    weights = load_file(weights_file)
    ruined = {name: _with_noise(value, rng=rng) for name, value in weights.items()}
    weights_file.unlink()  # the copy keeps its source's mode, which may be read-only
    save_file(ruined, weights_file, metadata={"format": "pt"})
    return into


def _with_noise(weights: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    if weights.ndim < 2:
        return weights
    noise = rng.normal(0.0, NOISE_SHARE * float(weights.std()), weights.shape)
    return (weights + noise).astype(weights.dtype)
