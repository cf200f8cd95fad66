"""A few fixed rows that a run does not learn, as sequences.

Which of a file's rows they are is decided by the hash of each, so that every run on the same suite is
measured on the same ones. A row that stands in the training data, token for token, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from registry.errors import DatasetError
from registry.files import sha256_text
from registry.rows import ChatRow, read_rows
from trainer.core.chat import ChatEncoder, Example
from trainer.core.data import TokenizedDataset
from trainer.errors import DataError

MIN_ROWS = 8  # fewer have no interval worth the name


def held_out_sequences(
    path: Path, *, encoder: ChatEncoder, training: TokenizedDataset, max_length: int, num_rows: int
) -> TokenizedDataset:
    """At most `num_rows` rows of a JSONL file; `DataError` says why there are none."""
    try:
        rows = sorted(read_rows(path), key=lambda row: sha256_text(row.content_id))
    except DatasetError as error:
        raise DataError(error.message) from error
    chosen: list[tuple[int, Example]] = []
    num_chosen = num_learnt = num_unfit = 0
    for number, row in enumerate(rows, start=1):
        examples = _encoded(row, encoder=encoder, max_length=max_length)
        if not examples:
            num_unfit += 1
        elif any(stands_in(training, tokens=example.tokens) for example in examples):
            num_learnt += 1
        else:
            num_chosen += 1
            chosen += [(number, example) for example in examples]
        if num_chosen == num_rows:
            break
    if num_chosen < MIN_ROWS:
        raise DataError(
            f"{path.name} has {num_chosen} rows to measure by, fewer than {MIN_ROWS}: {num_learnt} stand in "
            f"the training data, {num_unfit} are too long or not for this profile."
        )
    return _laid_end_to_end(chosen, num_rows=num_chosen)


def stands_in(training: TokenizedDataset, *, tokens: Sequence[int]) -> bool:
    """True where a training sequence is this one: those as long are compared from the end."""
    found: NDArray[np.int64] = training.starts[:-1][training.lengths == len(tokens)]
    for place in range(len(tokens) - 1, -1, -1):
        if not len(found):
            return False
        found = found[training.tokens[found + place] == tokens[place]]
    return bool(len(found))


def _encoded(row: ChatRow, *, encoder: ChatEncoder, max_length: int) -> list[Example]:
    try:
        examples = next(encoder.encode([row]))
    except DataError:
        return []
    return examples if max(len(example.tokens) for example in examples) <= max_length else []


def _laid_end_to_end(chosen: Sequence[tuple[int, Example]], *, num_rows: int) -> TokenizedDataset:
    ends = np.cumsum([0, *(len(example.tokens) for _, example in chosen)])
    return TokenizedDataset(
        tokens=np.fromiter(_tokens(chosen), dtype=np.uint32),
        is_answer=np.concatenate([np.array(example.is_answer, dtype=np.bool_) for _, example in chosen]),
        starts=ends.astype(np.int64),
        row_numbers=np.array([number for number, _ in chosen], dtype=np.int64),
        num_rows=num_rows,
        num_dropped_rows=0,
    )


def _tokens(chosen: Sequence[tuple[int, Example]]) -> Iterator[int]:
    for _, example in chosen:
        yield from example.tokens
