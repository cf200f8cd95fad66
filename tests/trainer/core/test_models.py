"""Loading what training starts from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.files import sha256_file
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest
from trainer.core.data import TokenizedDataset
from trainer.core.loss import collate
from trainer.core.models import check_projection, identify_model, load_model, load_tokenizer
from trainer.errors import ModelError
from trainer.testing import NOON

CPU = torch.device("cpu")


@pytest.fixture
def copy(model_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_directory, tmp_path / "copy"))


def seal(directory: Path) -> None:
    files = list_files(directory)
    manifest = Manifest(files=files, weights_sha256=weights_sha256(files), code_version="1", created_at=NOON)
    write_manifest(directory, manifest=manifest)


def test_a_model_is_identified_by_its_weights(copy: Path) -> None:
    expected = sha256_file(copy / "model.safetensors")
    assert identify_model(copy) == expected
    seal(copy)
    assert identify_model(copy) == expected


def test_a_sealed_model_that_was_changed_is_refused(copy: Path) -> None:
    seal(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json"):
        identify_model(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no .safetensors weights"):
        identify_model(copy)


def test_weights_that_are_missing_are_not_made_up(copy: Path, tokenizer: Any) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing_keys: model\.norm\.weight"):
        load_model(copy, device=CPU, tokenizer=tokenizer)


def test_truncated_weights_are_refused(copy: Path, tokenizer: Any) -> None:
    os.truncate(copy / "model.safetensors", 1000)
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        load_model(copy, device=CPU, tokenizer=tokenizer)


def test_a_tokenizer_of_another_model_is_refused(copy: Path, tokenizer: Any) -> None:
    tokenizer.add_tokens(["extra"])
    with pytest.raises(ModelError, match="belongs to another model"):
        load_model(copy, device=CPU, tokenizer=tokenizer)


def test_a_damaged_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(copy)


def test_bfloat16_weights_are_trained_in_float32(copy: Path, tokenizer: Any) -> None:
    weights = {name: value.bfloat16() for name, value in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    model = load_model(copy, device=CPU, tokenizer=tokenizer)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_logits_that_are_the_output_projection_pass(model: Any, dataset: TokenizedDataset) -> None:
    check_projection(model, batch=collate(dataset, indices=np.array([0]), device=CPU))
    assert model.training


def test_logits_changed_after_the_projection_are_refused(
    model: Any, dataset: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = type(model).forward

    def capped(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    monkeypatch.setattr(type(model), "forward", capped)
    with pytest.raises(ModelError, match="changes its logits"):
        check_projection(model, batch=collate(dataset, indices=np.array([0]), device=CPU))
