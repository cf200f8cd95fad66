"""How large a model is, read from its files' headers: no weight is loaded, no torch is needed."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from registry.errors import ManifestError
from registry.records import Record

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


class ModelShape(Record):
    """What decides how much memory a decoder-only model takes."""

    num_parameters: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    num_key_values: int = Field(ge=1, description="numbers a token adds to the cache in one layer")


def read_shape(directory: Path) -> ModelShape:
    """Of a model directory; `ManifestError` where its files do not say."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        heads = int(config["num_attention_heads"])
        head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
        return ModelShape(
            num_parameters=sum(_num_parameters(path) for path in directory.glob("*.safetensors")),
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            vocab_size=config["vocab_size"],
            num_key_values=2 * head_size * int(config.get("num_key_value_heads") or heads),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ManifestError(
            f"{directory} does not say how large its model is: {type(error).__name__}: {error}."
        ) from None


def _num_parameters(path: Path) -> int:
    header = _header(path)
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    return header
