"""The loss on answer tokens equals the padded and masked reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.core.data import TokenizedDataset
from trainer.core.loss import answer_logits, answer_loss_sum, collate

CPU = torch.device("cpu")
PADDING_ID = 0


def reference_loss(model: Any, dataset: TokenizedDataset, indices: np.ndarray) -> torch.Tensor:
    """transformers' own: padded, masked, labels of -100 wherever nothing is learnt."""
    width = int(dataset.lengths[indices].max())
    ids = torch.full((len(indices), width), PADDING_ID)
    labels = torch.full((len(indices), width), -100)
    mask = torch.zeros((len(indices), width), dtype=torch.long)
    for row, index in enumerate(indices):
        start, stop = dataset.starts[index], dataset.starts[index + 1]
        tokens = torch.from_numpy(dataset.tokens[start:stop].astype(np.int64))
        learnt = torch.from_numpy(dataset.is_answer[start:stop].copy())
        ids[row, : stop - start] = tokens
        mask[row, : stop - start] = 1
        labels[row, : stop - start] = torch.where(learnt, tokens, -100)
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


@given(indices=st.lists(st.integers(0, 23), min_size=1, max_size=9, unique=True))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_loss_equals_the_padded_and_masked_reference(
    model: Any, dataset: TokenizedDataset, indices: list[int]
) -> None:
    chosen = np.array(indices)
    batch = collate(dataset, indices=chosen, device=CPU)
    ours = answer_loss_sum(model, batch=batch).item() / batch.num_answers
    assert ours == pytest.approx(reference_loss(model, dataset, chosen).item(), abs=1e-5)


def test_the_gradient_equals_the_reference(model: Any, dataset: TokenizedDataset) -> None:
    chosen = np.arange(8)
    reference_loss(model, dataset, chosen).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    batch = collate(dataset, indices=chosen, device=CPU)
    (answer_loss_sum(model, batch=batch) / batch.num_answers).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_logits_exist_for_answer_tokens_alone(model: Any, dataset: TokenizedDataset) -> None:
    chosen = np.arange(6)
    batch = collate(dataset, indices=chosen, device=CPU)
    expected = sum(
        int(dataset.is_answer[dataset.starts[index] : dataset.starts[index + 1]].sum()) for index in chosen
    )
    assert batch.num_answers == expected
    assert answer_logits(model, batch=batch).shape == (expected, model.config.vocab_size)
    assert expected < batch.input_ids.numel() / 2


def test_real_tokens_are_counted_and_padding_is_not(dataset: TokenizedDataset) -> None:
    chosen = np.arange(6)
    assert collate(dataset, indices=chosen, device=CPU).num_tokens == dataset.lengths[:6].sum()
