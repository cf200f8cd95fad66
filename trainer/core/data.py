"""A JSONL file as tokens: three flat arrays, five bytes a token, whatever the number of rows."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from registry.rows import ChatRow, read_rows
from trainer.core.chat import ChatEncoder, Example
from trainer.errors import DataError

CHUNK_ROWS = 512


@dataclass(frozen=True)
class TokenizedDataset:
    """Sequences laid end to end.

    `tokens` uint32 [n] and `is_answer` bool [n]; sequence i is the slice `starts[i]:starts[i + 1]`
    (int64 [num_sequences + 1]) and comes from row `row_numbers[i]` of the file, counted from 1.
    """

    tokens: NDArray[np.uint32]
    is_answer: NDArray[np.bool_]
    starts: NDArray[np.int64]
    row_numbers: NDArray[np.int64]
    num_rows: int
    num_dropped_rows: int

    @property
    def num_sequences(self) -> int:
        """At least `num_rows`."""
        return len(self.row_numbers)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, int64 [num_sequences]."""
        return np.diff(self.starts)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of everything that decides what is learnt from this data."""
        digest = hashlib.sha256()
        for values in (self.tokens, self.is_answer, self.starts):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def tokenize_file(
    path: Path, *, encoder: ChatEncoder, max_length: int, overlong: Literal["drop", "reject"]
) -> TokenizedDataset:
    """Read and encode a JSONL file of chat rows.

    Raises `DatasetError` for rows that cannot be read, `DataError` for a row longer than `max_length`
    tokens if `overlong` is "reject", and where no row is left.
    """
    builder = _Builder()
    for number, examples in _encoded_rows(read_rows(path), encoder=encoder):
        longest = max(len(example.tokens) for example in examples)
        if longest <= max_length:
            builder.add(examples, number=number)
        elif overlong == "drop":
            builder.num_dropped_rows += 1
        else:
            raise DataError(
                f"{path.name}: row {number} has {longest} tokens; max_length is {max_length}.",
                remedy="Shorten it, raise max_length, or set data.overlong to 'drop'.",
            )
    if not builder.num_rows:
        raise DataError(
            f"{path.name}: all {builder.num_dropped_rows} rows are longer than {max_length} tokens.",
            remedy="Shorten the rows or raise max_length.",
        )
    return builder.build()


def _encoded_rows(rows: Iterable[ChatRow], *, encoder: ChatEncoder) -> Iterator[tuple[int, list[Example]]]:
    iterator, number = iter(rows), 0
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        for examples in encoder.encode(chunk, first_number=number + 1):
            number += 1
            yield number, examples


class _Builder:
    def __init__(self) -> None:
        self.num_rows = 0
        self.num_dropped_rows = 0
        self._tokens = array("I")
        self._is_answer = array("B")
        self._starts = array("q", [0])
        self._row_numbers = array("q")

    def add(self, examples: Iterable[Example], *, number: int) -> None:
        self.num_rows += 1
        for example in examples:
            self._tokens.extend(example.tokens)
            self._is_answer.extend(example.is_answer)
            self._starts.append(len(self._tokens))
            self._row_numbers.append(number)

    def build(self) -> TokenizedDataset:
        return TokenizedDataset(
            tokens=np.frombuffer(self._tokens, dtype=np.uint32),
            is_answer=np.frombuffer(self._is_answer, dtype=np.bool_),
            starts=np.frombuffer(self._starts, dtype=np.int64),
            row_numbers=np.frombuffer(self._row_numbers, dtype=np.int64),
            num_rows=self.num_rows,
            num_dropped_rows=self.num_dropped_rows,
        )
