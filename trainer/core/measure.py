"""A dataset's tokens, measured for a plan: its longest row, its largest batch, how much of it is learnt."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from registry.errors import DatasetError
from trainer.core.batching import BatchPlan, padded_tokens
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset
from trainer.core.models import load_tokenizer
from trainer.core.token_cache import TokenCache
from trainer.dataset_shape import DatasetShape
from trainer.errors import DataError


def measure_dataset(
    path: Path, *, model: Path, max_length: int, tokens_per_batch: int, token_cache_dir: Path, max_bytes: int
) -> DatasetShape:
    """Of a JSONL file under a model's tokenizer; raises what training would."""
    cache = TokenCache(token_cache_dir, max_bytes=max_bytes, warn=warnings.warn)
    encoder = ChatEncoder(load_tokenizer(model))
    try:
        dataset = cache.open(path, encoder=encoder, max_length=max_length, overlong="drop")
    except DatasetError as error:
        raise DataError(error.message, remedy=error.remedy) from error
    return shape_of(dataset, tokens_per_batch=tokens_per_batch)


def shape_of(dataset: TokenizedDataset, *, tokens_per_batch: int) -> DatasetShape:
    """Over the batches of one epoch."""
    lengths = dataset.lengths
    plan = BatchPlan(lengths=lengths, tokens_per_batch=tokens_per_batch, num_epochs=1, seed=0)
    answers = np.add.reduceat(dataset.is_answer, dataset.starts[:-1], dtype=np.int64)
    largest, share = 0, 0.0
    for step in range(plan.num_steps):
        indices = plan.batch(step)
        num_tokens = padded_tokens(indices, lengths=lengths)
        largest = max(largest, num_tokens)
        share = max(share, int(answers[indices].sum()) / num_tokens)
    longest = int(lengths.argmax())
    return DatasetShape(
        num_rows=dataset.num_rows,
        num_dropped_rows=dataset.num_dropped_rows,
        num_tokens=len(dataset.tokens),
        num_answers=int(answers.sum()),
        num_steps=plan.num_steps,
        longest_row=int(dataset.row_numbers[longest]),
        longest_row_tokens=int(lengths[longest]),
        largest_batch_tokens=largest,
        answer_share=share,
    )
