import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry import model_shapes
from registry.errors import ManifestError
from registry.model_shapes import ModelShape, read_shape

QWEN = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def model(directory: Path, **changes: object) -> Path:
    (directory / "config.json").write_text(json.dumps({**QWEN, **changes}))
    save_file({"a": np.zeros((10, 20), np.float32)}, directory / "model-1.safetensors")
    save_file({"b": np.zeros(5, np.float16)}, directory / "model-2.safetensors", metadata={"format": "pt"})
    return directory


def test_a_model_is_measured_by_the_headers_of_all_its_files(tmp_path: Path) -> None:
    assert read_shape(model(tmp_path)) == ModelShape(
        num_parameters=205,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_key_value_heads=8,
        head_size=128,
        vocab_size=151936,
    )


def test_unchanged_files_are_read_once_and_changed_ones_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_shape(model(tmp_path))
    with monkeypatch.context() as without_json:
        without_json.setattr(model_shapes, "json", None)
        assert read_shape(tmp_path) is first
    model(tmp_path, num_hidden_layers=2)
    assert read_shape(tmp_path).num_layers == 2
    save_file({"c": np.zeros(7, np.float32)}, tmp_path / "model-3.safetensors")
    assert read_shape(tmp_path).num_parameters == 212


def test_without_grouped_heads_every_head_has_its_keys(tmp_path: Path) -> None:
    plain = model(tmp_path, num_key_value_heads=None, head_dim=None)
    assert read_shape(plain).num_key_values == 2 * 1024


@pytest.mark.parametrize("damage", ["config", "weights", "no weights", "no config"])
def test_a_model_whose_files_do_not_say_is_refused(tmp_path: Path, damage: str) -> None:
    model(tmp_path)
    if damage == "config":
        (tmp_path / "config.json").write_text('{"hidden_size": "wide"}')
    elif damage == "no config":
        (tmp_path / "config.json").unlink()
    else:
        for path in tmp_path.glob("*.safetensors"):
            path.unlink() if damage == "no weights" else path.write_bytes(b"\xff" * 40)
    with pytest.raises(ManifestError, match="does not say how large"):
        read_shape(tmp_path)


def test_a_family_that_names_no_width_of_its_layers_has_four_times_the_hidden_one(tmp_path: Path) -> None:
    shape = read_shape(model(tmp_path, intermediate_size=None))
    assert shape.intermediate_size == 4 * 1024
    assert (shape.num_key_values, shape.num_queries) == (2048, 2048)
