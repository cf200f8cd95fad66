"""AdamW's groups and its learning rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.hyperparameters import Hyperparameters, Schedule
from trainer.core.optimizer import learning_rate_at, make_optimizer, optimizer_tensors, restore_optimizer

SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "constant")


def rates(schedule: Schedule, *, num_steps: int, warmup_steps: int = 0) -> list[float]:
    chosen = Hyperparameters(learning_rate=0.1, schedule=schedule, warmup_steps=warmup_steps)
    return [learning_rate_at(step, num_steps=num_steps, hyperparameters=chosen) for step in range(num_steps)]


@given(schedule=st.sampled_from(SCHEDULES), num_steps=st.integers(1, 60), warmup_steps=st.integers(0, 80))
def test_every_step_learns_and_none_above_the_peak(
    schedule: Schedule, num_steps: int, warmup_steps: int
) -> None:
    made = rates(schedule, num_steps=num_steps, warmup_steps=warmup_steps)
    assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in made)
    assert max(made) == pytest.approx(0.1)


def test_it_warms_up_in_equal_steps() -> None:
    assert rates("constant", num_steps=8, warmup_steps=4) == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 5)


def test_linear_falls_evenly_and_cosine_stays_above_it_at_first() -> None:
    linear, cosine = rates("linear", num_steps=10), rates("cosine", num_steps=10)
    assert linear == pytest.approx([0.1 * (10 - step) / 10 for step in range(10)])
    assert cosine[2] > linear[2]
    assert cosine[8] < linear[8]


def test_a_short_run_spends_at_most_half_on_the_warm_up() -> None:
    assert rates("linear", num_steps=4, warmup_steps=100)[1] == pytest.approx(0.1)


def test_norms_and_embeddings_are_not_decayed(model: Any) -> None:
    optimizer = make_optimizer(model, hyperparameters=Hyperparameters(weight_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    assert "model.layers.0.self_attn.q_proj.weight" in by_decay[0.5]
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= by_decay[0.0]
    assert by_decay[0.5] | by_decay[0.0] == set(names.values())


def test_a_missing_moment_is_an_error_and_not_a_fresh_start(model: Any) -> None:
    optimizer = make_optimizer(model, hyperparameters=Hyperparameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer, model=model)
    del tensors["exp_avg_sq.model.norm.weight"]
    fresh = torch.optim.AdamW(model.parameters())
    with pytest.raises(KeyError, match=r"exp_avg_sq\.model\.norm\.weight"):
        restore_optimizer(fresh, model=model, tensors=tensors)
