"""Tokens on disk: four flat files in a directory, written as rows come and read as memory maps.

However many rows there are, writing holds one block of them in memory, and reading none: pages belong to the
system's cache, which it takes back when it needs room.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from registry.files import sync_tree, write_json
from registry.records import Record
from trainer.core.chat import Example
from trainer.errors import DataError

META_NAME = "tokens.json"
FORMAT = 1
BLOCK_TOKENS = 1 << 18
CHECK_BYTES = 1 << 22

# Name of the array: type code of what is written, dtype of what is read.
ARRAYS = {
    "tokens": ("I", np.uint32),
    "is_answer": ("B", np.bool_),
    "starts": ("q", np.int64),
    "row_numbers": ("q", np.int64),
}


class ArrayFile(Record):
    """One array's file: its size, and the CRC-32 that finds what a disk or a crash did to it."""

    num_bytes: int = Field(ge=0)
    crc32: int = Field(ge=0)


class TokenFiles(Record):
    """What a directory of tokens holds; written last, so that without it the directory holds nothing."""

    format: int = FORMAT
    num_rows: int = Field(ge=1)
    num_dropped_rows: int = Field(ge=0)
    num_truncated_rows: int = Field(default=0, ge=0)
    arrays: dict[str, ArrayFile]
    digest: str = Field(default="", description="hex sha256 of tokens, marks and starts")


class TokenWriter:
    """Appends sequences to the files of a directory that is its own."""

    def __init__(self, directory: Path) -> None:
        self.num_rows = 0
        self.num_dropped_rows = 0
        self.num_truncated_rows = 0
        self._directory = directory
        self._blocks = {name: array(code) for name, (code, _) in ARRAYS.items()}
        self._checks = dict.fromkeys(ARRAYS, 0)
        self._sizes = dict.fromkeys(ARRAYS, 0)
        self._num_tokens = 0
        self._blocks["starts"].append(0)

    def add(self, examples: Iterable[Example], *, number: int) -> None:
        """The sequences of row `number`."""
        self.num_rows += 1
        for example in examples:
            self._blocks["tokens"].extend(example.tokens)
            self._blocks["is_answer"].extend(example.is_answer)
            self._num_tokens += len(example.tokens)
            self._blocks["starts"].append(self._num_tokens)
            self._blocks["row_numbers"].append(number)
        if len(self._blocks["tokens"]) >= BLOCK_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Hand what is held to the system."""
        for name, block in self._blocks.items():
            with (self._directory / name).open("ab") as stream:
                stream.write(block)
            self._checks[name] = zlib.crc32(block, self._checks[name])
            self._sizes[name] += len(block) * block.itemsize
            del block[:]

    def files(self) -> TokenFiles:
        """What was written so far."""
        return TokenFiles(
            num_rows=self.num_rows,
            num_dropped_rows=self.num_dropped_rows,
            num_truncated_rows=self.num_truncated_rows,
            arrays={
                name: ArrayFile(num_bytes=self._sizes[name], crc32=self._checks[name]) for name in ARRAYS
            },
        )


def seal(directory: Path, *, files: TokenFiles) -> None:
    """Make the arrays durable, then write what they are."""
    sync_tree(directory)
    write_json(directory / META_NAME, value=files.model_dump(mode="json"))


def read_sealed(directory: Path) -> TokenFiles:
    """What a sealed directory holds, every byte checked; `DataError` says what is wrong with it."""
    try:
        files = TokenFiles.model_validate_json((directory / META_NAME).read_bytes())
        for name in ARRAYS:
            _check(directory / name, expected=files.arrays[name])
    except (OSError, ValidationError, KeyError) as error:
        raise DataError(f"{directory} holds no whole tokens: {type(error).__name__}: {error}") from error
    if files.format != FORMAT:
        raise DataError(f"{directory} holds tokens of format {files.format}, not {FORMAT}.")
    return files


def map_array(directory: Path, *, name: str) -> NDArray[np.generic]:
    """One array, read-only, of the length of its file."""
    mapped = np.memmap(directory / name, dtype=ARRAYS[name][1], mode="r")
    return mapped.view(np.ndarray)


def _check(path: Path, *, expected: ArrayFile) -> None:
    size = path.stat().st_size
    if size != expected.num_bytes:
        raise OSError(f"{path.name} has {size} bytes instead of {expected.num_bytes}")
    check = 0
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while block := stream.read(CHECK_BYTES):
            check = zlib.crc32(block, check)
    if check != expected.crc32:
        raise OSError(f"{path.name} is damaged: its CRC-32 is {check:08x} instead of {expected.crc32:08x}")
