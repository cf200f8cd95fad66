"""A dataset's tokens, measured for a plan: its longest row, its largest batch, how much of it is learnt."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from registry.errors import DatasetError
from trainer.config.pinned import profile_named
from trainer.core.batching import BatchPlan, batch_tokens
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset
from trainer.core.models import load_tokenizer
from trainer.core.packed_attention import suits_packing
from trainer.core.parallel import Team
from trainer.core.token_cache import TokenCache
from trainer.dataset_shape import BatchSettings, DatasetShape, RowSettings
from trainer.errors import DataError


def measure_dataset(
    path: Path,
    *,
    model: Path,
    rows: RowSettings,
    batches: BatchSettings,
    token_cache_dir: Path,
    max_bytes: int,
) -> DatasetShape:
    """Of a JSONL file under a model's tokenizer; raises what training would."""
    cache = TokenCache(token_cache_dir, max_bytes=max_bytes, warn=warnings.warn)
    encoder = ChatEncoder(load_tokenizer(model), profile=profile_named(rows.profile))
    try:
        dataset = cache.open(path, encoder=encoder, max_length=rows.max_length, overlong=rows.overlong)
    except DatasetError as error:
        raise DataError(error.message, remedy=error.remedy) from error
    return shape_of(dataset, batches=batches, is_packed=batches.may_be_packed and suits_packing(model))


def shape_of(dataset: TokenizedDataset, *, batches: BatchSettings, is_packed: bool = False) -> DatasetShape:
    """Over the batches of one epoch, each as the processes share it."""
    lengths = dataset.lengths
    plan = BatchPlan(
        lengths=lengths,
        tokens_per_batch=batches.tokens_per_batch,
        num_epochs=1,
        seed=0,
        is_packed=is_packed,
    )
    answers = np.add.reduceat(dataset.is_answer, dataset.starts[:-1], dtype=np.int64)
    largest, share = 0, 0.0
    for step in range(plan.num_steps):
        for rank in range(batches.num_processes):
            indices = Team(rank=rank, size=batches.num_processes).share(plan.batch(step))
            if not len(indices):
                continue
            num_tokens = batch_tokens(indices, lengths=lengths, is_packed=is_packed)
            largest = max(largest, num_tokens)
            share = max(share, int(answers[indices].sum()) / num_tokens)
    longest = int(lengths.argmax())
    return DatasetShape(
        num_rows=dataset.num_rows,
        num_dropped_rows=dataset.num_dropped_rows,
        num_truncated_rows=dataset.num_truncated_rows,
        num_tokens=len(dataset.tokens),
        num_answers=int(answers.sum()),
        num_steps=plan.num_steps,
        longest_row=int(dataset.row_numbers[longest]),
        longest_row_tokens=int(lengths[longest]),
        largest_batch_tokens=largest,
        answer_share=share,
    )
