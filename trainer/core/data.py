"""A JSONL file as tokens: flat arrays on disk, five bytes a token, mapped and never held in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.rows import ChatRow, read_rows
from trainer.config.job import Overlong
from trainer.core.chat import ChatEncoder, Example
from trainer.core.token_files import TokenFiles, TokenWriter, map_array
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
    num_truncated_rows: int = 0
    known_digest: str = ""

    @property
    def num_sequences(self) -> int:
        """At least `num_rows`."""
        return len(self.row_numbers)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, int64 [num_sequences]."""
        return np.diff(self.starts)

    def num_answers(self, indices: NDArray[np.int64]) -> int:
        """Answer tokens of these sequences that something predicts: none predicts a first token."""
        lengths = self.lengths[indices] - 1
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(self.starts[indices] + 1 - (ends - lengths), lengths)
        return int(np.count_nonzero(self.is_answer[places]))

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of everything that decides what is learnt from this data."""
        if self.known_digest:
            return self.known_digest
        digest = hashlib.sha256()
        for values in (self.tokens, self.is_answer, self.starts):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def tokenize_file(
    path: Path, *, encoder: ChatEncoder, max_length: int, overlong: Overlong
) -> TokenizedDataset:
    """Read and encode a JSONL file of chat rows; its tokens lie in files that end with this process.

    Raises `DatasetError` for rows that cannot be read, `DataError` for a row longer than `max_length`
    tokens if `overlong` is "reject", and where no row is left.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-tokens-") as name:
        directory = Path(name)
        files = tokenize_into(directory, path=path, encoder=encoder, max_length=max_length, overlong=overlong)
        return open_tokens(directory, files=files)  # what is mapped outlives its name


def tokenize_into(
    directory: Path, *, path: Path, encoder: ChatEncoder, max_length: int, overlong: Overlong
) -> TokenFiles:
    """The same into the files of an empty directory; raises what `tokenize_file` does."""
    writer = TokenWriter(directory)
    for number, examples in _encoded_rows(read_rows(path), encoder=encoder):
        longest = max(len(example.tokens) for example in examples)
        if longest <= max_length:
            writer.add(examples, number=number)
        elif overlong == "reject":
            raise DataError(
                f"{path.name}: row {number} has {longest} tokens; max_length is {max_length}.",
                remedy="Shorten it, raise max_length, or set data.overlong to 'drop' or 'truncate'.",
            )
        elif overlong == "truncate" and (kept := _truncated(examples, max_length=max_length)):
            writer.add(kept, number=number)
            writer.num_truncated_rows += 1
        else:
            writer.num_dropped_rows += 1
    if not writer.num_rows:
        raise DataError(
            f"{path.name}: all {writer.num_dropped_rows} rows are longer than {max_length} tokens"
            + (", with no answer before that." if overlong == "truncate" else "."),
            remedy="Shorten the rows or raise max_length.",
        )
    writer.flush()
    return writer.files()


def open_tokens(directory: Path, *, files: TokenFiles) -> TokenizedDataset:
    """Map what `tokenize_into` wrote; nothing is read before it is used."""
    arrays: dict[str, Any] = {name: map_array(directory, name=name) for name in files.arrays}
    return TokenizedDataset(
        num_rows=files.num_rows,
        num_dropped_rows=files.num_dropped_rows,
        num_truncated_rows=files.num_truncated_rows,
        known_digest=files.digest,
        **arrays,
    )


def _truncated(examples: Iterable[Example], *, max_length: int) -> list[Example]:
    """What is left within `max_length` tokens, up to the last that is learnt; nothing where none is."""
    kept = []
    for example in examples:
        is_answer = example.is_answer[:max_length]
        num_tokens = max((place + 1 for place, is_learnt in enumerate(is_answer) if is_learnt), default=0)
        if num_tokens:
            kept.append(Example(tokens=example.tokens[:num_tokens], is_answer=is_answer[:num_tokens]))
    return kept


def _encoded_rows(rows: Iterable[ChatRow], *, encoder: ChatEncoder) -> Iterator[tuple[int, list[Example]]]:
    iterator, number = iter(rows), 0
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        for examples in encoder.encode(chunk, first_number=number + 1):
            number += 1
            yield number, examples
