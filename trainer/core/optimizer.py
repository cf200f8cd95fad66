"""AdamW and its learning rate, both pure functions of hyperparameters and step.

AdamW: I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.hyperparameters import Hyperparameters
from trainer.core.exchange import parted_like

DECAYED_DIMENSIONS = 2


def learning_rate_at(step: int, *, num_steps: int, hyperparameters: Hyperparameters) -> float:
    """Learning rate of step `step`, counted from 0, of `num_steps`.

    Linear warm-up to the peak, over at most half of the steps, then the schedule, which would reach 0
    one step after the last.
    """
    peak = hyperparameters.learning_rate
    warmup = min(hyperparameters.warmup_steps, num_steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    remaining = (num_steps - step) / (num_steps - warmup)
    if hyperparameters.schedule == "linear":
        return peak * remaining
    if hyperparameters.schedule == "cosine":
        return peak * 0.5 * (1 - math.cos(math.pi * remaining))
    return peak


def make_optimizer(model: nn.Module, *, hyperparameters: Hyperparameters) -> torch.optim.AdamW:
    """AdamW, fused; weight decay on matrices alone, never on norms, biases or embeddings."""
    decayed, kept = _split_parameters(model)
    groups = [
        {"params": decayed, "weight_decay": hyperparameters.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=hyperparameters.learning_rate,
        betas=(hyperparameters.adam_beta1, hyperparameters.adam_beta2),
        eps=hyperparameters.adam_epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, *, value: float) -> None:
    """For every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def optimizer_tensors(optimizer: torch.optim.Optimizer, *, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by name: `<entry>.<parameter>`, such as `exp_avg.lm_head.weight`."""
    return {
        f"{entry}.{name}": value
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, *, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; `KeyError` where a parameter's state is not there."""
    entries = ("step", "exp_avg", "exp_avg_sq")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state: dict[str, Any] = {entry: tensors[f"{entry}.{name}"] for entry in entries}
            optimizer.state[parameter] = {
                entry: parted_like(value, parameter=parameter) for entry, value in state.items()
            }


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }  # an output projection tied to them is the same tensor
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= DECAYED_DIMENSIONS and id(parameter) not in embeddings
        (decayed if is_matrix else kept).append(parameter)
    return decayed, kept
