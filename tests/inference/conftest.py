"""Shared by the inference tests: small models, once a session, on one thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference.model import LoadedModel, load_model
from inference.testing import build_sealed_tiny_model, make_talkative


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sealed_tiny_model(tmp_path_factory.mktemp("tiny"), seed=7)


@pytest.fixture(scope="session")
def tiny(tiny_directory: Path) -> LoadedModel:
    return load_model(tiny_directory, device="cpu")


@pytest.fixture(scope="session")
def talker(tiny_directory: Path) -> LoadedModel:
    """A model whose greedy replies vary in text and length."""
    return make_talkative(load_model(tiny_directory, device="cpu"))
