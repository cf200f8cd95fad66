"""Batches: each row once an epoch, within the budget, the same for the same seed and step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.batching import BatchPlan, padded_tokens, split_to_limit

lengths_of = st.lists(st.integers(2, 300), min_size=1, max_size=80).map(lambda values: np.array(values))
budgets = st.integers(1, 1200)


def plan(
    lengths: np.ndarray, *, budget: int = 400, num_epochs: int = 2, seed: int = 0, **options: int
) -> BatchPlan:
    return BatchPlan(lengths=lengths, tokens_per_batch=budget, num_epochs=num_epochs, seed=seed, **options)


@given(lengths=lengths_of, budget=budgets, seed=st.integers(0, 9))
def test_every_row_is_met_once_an_epoch(lengths: np.ndarray, budget: int, seed: int) -> None:
    made = plan(lengths, budget=budget, seed=seed)
    for epoch in range(2):
        steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
        met = np.concatenate([made.batch(step) for step in steps])
        assert sorted(met) == list(range(len(lengths)))


@given(lengths=lengths_of, budget=budgets)
def test_no_batch_exceeds_its_budget_but_a_row_longer_than_it(lengths: np.ndarray, budget: int) -> None:
    made = plan(lengths, budget=budget)
    for step in range(made.num_steps):
        batch = made.batch(step)
        assert len(batch) == 1 or padded_tokens(batch, lengths=lengths) <= budget


@given(lengths=lengths_of, budget=budgets, step=st.integers(0, 200))
def test_a_batch_is_a_function_of_its_step_alone(lengths: np.ndarray, budget: int, step: int) -> None:
    fresh, used = plan(lengths, budget=budget, num_epochs=5), plan(lengths, budget=budget, num_epochs=5)
    step %= fresh.num_steps
    for earlier in range(step):
        used.batch(earlier)
    assert fresh.batch(step).tolist() == used.batch(step).tolist()


@given(lengths=lengths_of)
def test_a_batch_begins_with_its_longest_rows_up_to_rounding(lengths: np.ndarray) -> None:
    made = plan(lengths)
    for step in range(made.num_steps):
        batch = lengths[made.batch(step)]
        assert batch.max() <= batch[0] * 1.125


def test_little_is_padding_on_a_long_tail() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, size=4000).astype(np.int64).clip(8, 2000)
    made = plan(lengths, budget=4096, num_epochs=1)
    padded = sum(padded_tokens(made.batch(step), lengths=lengths) for step in range(made.num_steps))
    assert lengths.sum() / padded > 0.93


def test_rows_of_like_length_change_places_from_epoch_to_epoch() -> None:
    made = plan(np.full(40, 10), budget=80)
    assert [made.batch(0).tolist(), made.batch(1).tolist()] != [
        made.batch(made.steps_per_epoch).tolist(),
        made.batch(made.steps_per_epoch + 1).tolist(),
    ]


def test_another_seed_is_another_order() -> None:
    lengths = np.full(40, 10)
    assert plan(lengths, seed=1).batch(0).tolist() != plan(lengths, seed=2).batch(0).tolist()


def test_lengths_that_differ_little_are_mixed() -> None:
    lengths = np.repeat([73, 75, 77], 100)
    batch = plan(lengths, budget=4000).batch(0)
    assert set(lengths[batch]) == {73, 75, 77}


def test_max_steps_ends_a_run_sooner_and_never_later() -> None:
    lengths = np.full(40, 10)
    assert plan(lengths, budget=100, max_steps=3).num_steps == 3
    assert plan(lengths, budget=100, max_steps=99).num_steps == plan(lengths, budget=100).num_steps == 8


@given(lengths=lengths_of, limit=st.integers(1, 900))
def test_parts_keep_their_limit_and_their_order(lengths: np.ndarray, limit: int) -> None:
    indices = np.arange(len(lengths))
    parts = list(split_to_limit(indices, lengths=lengths, max_tokens=limit))
    assert np.concatenate(parts).tolist() == indices.tolist()
    assert all(len(part) == 1 or padded_tokens(part, lengths=lengths) <= limit for part in parts)


@pytest.mark.parametrize("num_rows", [1, 5])
def test_without_a_limit_a_batch_is_one_part(num_rows: int) -> None:
    indices = np.arange(num_rows)
    (part,) = split_to_limit(indices, lengths=np.full(num_rows, 9), max_tokens=None)
    assert part.tolist() == indices.tolist()
