from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.errors import ModelError
from inference.model import LoadedModel, load_model
from inference.testing import seal
from registry.errors import ManifestError
from registry.files import sha256_file
from registry.manifests import read_manifest, write_manifest


@pytest.fixture
def directory(tiny_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_directory, tmp_path / "model")


def test_a_loaded_model_knows_its_weights_and_what_ends_a_turn(
    tiny: LoadedModel, tiny_directory: Path
) -> None:
    assert tiny.weights_sha256 == sha256_file(tiny_directory / "model.safetensors")
    assert tiny.tokenizer.decode([tiny.end_of_turn_id]) == "<|im_end|>"
    assert tiny.stop_token_ids == {tiny.end_of_turn_id}
    assert tiny.max_positions == 2048
    assert tiny.has_finite_weights
    assert not tiny.model.training


def _remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def _edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _forget_a_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights.pop("model.layers.2.mlp.up_proj.weight")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _pickle_the_weights(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("config.json"), "not a model directory"),
        (_remove("tokenizer.json"), "has no tokenizer"),
        (_remove("chat_template.jinja"), "no chat template"),
        (_remove("model.safetensors"), "no .safetensors weights"),
        (_pickle_the_weights, "no .safetensors weights"),
        (_forget_a_weight, "1 weights do not match config.json"),
        (_write("config.json", "{"), "cannot be loaded"),
        (_write("tokenizer.json", "{"), "tokenizer cannot be loaded"),
        (_write("model.safetensors", "not weights"), "cannot be loaded as a model"),
        (_write("chat_template.jinja", "{{ raise_exception('no') }}"), "chat template fails"),
        (_edit_config(vocab_size=50), "do not match config.json"),
        (_edit_config(model_type="unheard-of"), "cannot be loaded"),
    ],
)
def test_what_is_no_whole_chat_model_is_refused_with_the_reason(
    directory: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(directory)
    with pytest.raises((ModelError, ManifestError), match=message):
        load_model(directory, device="cpu", verify_files=False)


def test_a_tokenizer_of_another_model_is_refused(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["é"] = 5000
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="belongs to another model"):
        load_model(seal(directory), device="cpu")


def test_a_directory_without_manifest_is_loaded_only_unverified(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        load_model(directory, device="cpu")
    assert load_model(directory, device="cpu", verify_files=False).has_finite_weights


def test_a_flipped_bit_is_found_before_the_weights_are_read(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="content changed"):
        load_model(directory, device="cpu")


@pytest.mark.parametrize("name", ["adapter_config.json", "extra.safetensors", "modeling_own.py"])
def test_a_loadable_file_outside_the_manifest_is_refused(directory: Path, name: str) -> None:
    (directory / name).write_text("{}")
    with pytest.raises(ModelError, match=f"{name}, which its manifest does not name"):
        load_model(directory, device="cpu")


def test_a_manifest_that_misstates_its_own_weights_is_refused(directory: Path) -> None:
    write_manifest(directory, manifest=read_manifest(directory).changed(weights_sha256="0" * 64))
    with pytest.raises(ModelError, match="not that of its weight files"):
        load_model(directory, device="cpu")


def test_other_weights_than_asked_for_are_refused(tiny_directory: Path) -> None:
    with pytest.raises(ModelError, match="not abababababab as asked"):
        load_model(tiny_directory, device="cpu", expected_sha256="ab" * 32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_known_at_load(directory: Path, value: float) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert not load_model(seal(directory), device="cpu").has_finite_weights


def test_half_precision_weights_are_run_in_float32_on_a_cpu(directory: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert load_model(seal(directory), device="cpu").model.dtype == torch.float32
    assert load_model(directory, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_device_that_is_not_there_is_named(tiny_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no CUDA device"):
        load_model(tiny_directory, device="cuda:0")


def test_a_name_of_no_device_is_refused(tiny_directory: Path) -> None:
    with pytest.raises(ModelError, match="'abacus' names no device"):
        load_model(tiny_directory, device="abacus")
