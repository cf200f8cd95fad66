"""A JSONL file as tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from registry.errors import DatasetError
from trainer.core import data
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.loss import collate
from trainer.errors import DataError

ROWS = [{"prompt": "turn ab", "completion": "ba"}, {"prompt": "x" * 60, "completion": "y"}]


@pytest.fixture
def tokenize(tokenizer: Any) -> Callable[..., TokenizedDataset]:
    def run(path: Path, *, max_length: int = 60, overlong: Any = "drop") -> TokenizedDataset:
        return tokenize_file(path, encoder=ChatEncoder(tokenizer), max_length=max_length, overlong=overlong)

    return run


def test_rows_lie_end_to_end(tokenize: Any, tokenizer: Any, write_rows: Any) -> None:
    dataset = tokenize(write_rows(ROWS), max_length=200)
    assert dataset.num_sequences == dataset.num_rows == 2
    first = dataset.tokens[dataset.starts[0] : dataset.starts[1]]
    assert tokenizer.decode(first.tolist()).endswith("assistant\nba<|im_end|>")
    assert dataset.lengths.sum() == len(dataset.tokens) == len(dataset.is_answer)


def test_answers_are_counted_without_a_batch(tokenize: Any, rows_file: Path) -> None:
    dataset = tokenize(rows_file, max_length=200)
    for indices in (np.array([7, 0, 3]), np.arange(dataset.num_sequences), np.array([], dtype=np.int64)):
        expected = sum(int(dataset.is_answer[slice(*dataset.starts[one : one + 2])].sum()) for one in indices)
        assert dataset.num_answers(indices) == expected
        if len(indices):
            assert collate(dataset, indices=indices, device=torch.device("cpu")).num_answers == expected


def test_a_row_that_is_too_long_is_dropped_and_counted(tokenize: Any, write_rows: Any) -> None:
    dataset = tokenize(write_rows([ROWS[1], ROWS[0]]))
    assert (dataset.num_rows, dataset.num_dropped_rows) == (1, 1)
    assert dataset.row_numbers.tolist() == [2]


def test_a_row_that_is_too_long_can_be_refused(tokenize: Any, write_rows: Any) -> None:
    with pytest.raises(DataError, match="row 2 has .* tokens; max_length is 60"):
        tokenize(write_rows(ROWS), overlong="reject")


def test_a_row_that_is_too_long_can_be_cut_off_behind_its_last_learnt_token(
    tokenize: Any, tokenizer: Any, write_rows: Any
) -> None:
    long = {"prompt": "x", "completion": "y" * 80}
    dataset = tokenize(write_rows([*ROWS, long]), overlong="truncate")
    assert (dataset.num_rows, dataset.num_truncated_rows, dataset.num_dropped_rows) == (2, 1, 1)
    assert dataset.row_numbers.tolist() == [1, 3]  # nothing of row 2's answer lies within the limit
    cut = slice(dataset.starts[1], dataset.starts[2])
    assert len(dataset.tokens[cut]) == 60
    assert dataset.is_answer[cut][-1]
    assert tokenizer.decode(dataset.tokens[cut].tolist()).endswith("yyy")


def test_a_cut_conversation_ends_with_an_answer(tokenize: Any, tokenizer: Any, write_rows: Any) -> None:
    texts = ["ab", "ba", "c" * 70, "d"]
    turns = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)
    ]
    dataset = tokenize(write_rows([{"messages": turns}]), overlong="truncate")
    assert tokenizer.decode(dataset.tokens.tolist()).endswith("ba<|im_end|>")


def test_nothing_left_is_an_error(tokenize: Any, write_rows: Any) -> None:
    with pytest.raises(DataError, match="all 1 rows are longer"):
        tokenize(write_rows(ROWS[1:]))


def test_an_unreadable_row_is_named(tokenize: Any, write_rows: Any) -> None:
    with pytest.raises(DatasetError, match="line 2"):
        tokenize(write_rows([ROWS[0], {"prompt": "no completion"}]))


def test_chunks_change_nothing(tokenize: Any, write_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(ROWS[:1] * 7)
    whole = tokenize(path)
    monkeypatch.setattr(data, "CHUNK_ROWS", 3)
    assert tokenize(path).digest == whole.digest
    assert tokenize(path).row_numbers.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_the_digest_follows_the_order_of_rows(tokenize: Any, write_rows: Any) -> None:
    other = {"prompt": "turn cd", "completion": "dc"}
    assert tokenize(write_rows([ROWS[0], other])).digest != tokenize(write_rows([other, ROWS[0]])).digest
