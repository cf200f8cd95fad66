"""Cut work into batches of like length under a token budget, and pad a batch on the left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from inference.model import LoadedModel


@dataclass(frozen=True)
class BatchLimits:
    """What one forward pass may hold. A row that alone exceeds it still runs, by itself.

    `max_tokens` bounds rows x longest row, and so the key-value cache (Qwen3-0.6B in bf16: 112 KiB a token).
    `max_logits` bounds rows x scored positions x vocabulary, the tensor that exhausts a GPU first.
    """

    max_rows: int = 64
    max_tokens: int = 16_384
    max_logits: int = 256 << 20


DEFAULT_LIMITS = BatchLimits()


def batches_by_length(
    lengths: Sequence[int],
    *,
    limits: BatchLimits,
    logits_per_row: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Indices of the rows of each batch, longest rows first, so that lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    most_logits = 0
    for index in order:
        logits = logits_per_row[index] if logits_per_row else 0
        num_rows = len(batch) + 1
        if batch and (
            num_rows > limits.max_rows
            or num_rows * lengths[batch[0]] > limits.max_tokens
            or num_rows * max(most_logits, logits) > limits.max_logits
        ):
            yield batch
            batch, most_logits = [], 0
        batch.append(index)
        most_logits = max(most_logits, logits)
    if batch:
        yield batch


def pad_left(
    loaded: LoadedModel, rows: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and position ids, each (rows, longest row); row ends are aligned."""
    width = max(map(len, rows))
    input_ids = torch.tensor(
        [[loaded.pad_token_id] * (width - len(row)) + list(row) for row in rows], dtype=torch.long
    )
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return input_ids.to(loaded.device), mask.to(loaded.device), positions.to(loaded.device)
