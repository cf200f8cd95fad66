"""How large a model is, read from its files' headers: no weight is loaded, no torch is needed."""

from __future__ import annotations

import json
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from registry.errors import ManifestError
from registry.values import Record

Stamp = tuple[int, int, int]  # inode, bytes, time of the last change

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


class ModelShape(Record):
    """What decides how much memory a decoder-only model takes."""

    num_parameters: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)

    @property
    def num_key_values(self) -> int:
        """Numbers that a token adds to the cache in one layer."""
        return 2 * self.head_size * self.num_key_value_heads

    @property
    def num_queries(self) -> int:
        """Numbers of a token's queries in one layer, and of what attention gives back."""
        return self.head_size * self.num_heads

    @property
    def num_layer_values(self) -> int:
        """Numbers of the matrices of one layer: of its attention, and of its gated MLP."""
        attention = 2 * self.num_queries + self.num_key_values
        return self.hidden_size * (attention + 3 * self.intermediate_size)


def read_shape(directory: Path) -> ModelShape:
    """Of a model directory; `ManifestError` where its files do not say. Unchanged files are read once."""
    try:
        return _read(directory, _stamps(directory))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ManifestError(
            f"{directory} does not say how large its model is: {type(error).__name__}: {error}."
        ) from None


def _stamps(directory: Path) -> tuple[Stamp, ...]:
    """What tells whether a file came, went or was replaced, or the configuration was written anew."""
    stats = (directory.stat(), (directory / "config.json").stat())
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


@lru_cache(maxsize=64)
def _read(directory: Path, _stamps: tuple[Stamp, ...]) -> ModelShape:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    num_parameters = sum(_num_parameters(path) for path in directory.glob("*.safetensors"))
    return _shape(config, num_parameters=num_parameters)


def _shape(config: dict[str, Any], *, num_parameters: int) -> ModelShape:
    hidden_size, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return ModelShape(
        num_parameters=num_parameters,
        hidden_size=hidden_size,
        # Four times the width where a family's configuration leaves it out.
        intermediate_size=config.get("intermediate_size") or 4 * hidden_size,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or hidden_size // heads,
        vocab_size=config["vocab_size"],
    )


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
