"""Output projection and cross-entropy in one, over chunks of answers, without the logits of all of them.

Each chunk's logits become its gradient in the same room, and that of the projection is added to in place:
one room of a chunk's logits and one gradient of the projection, however many answers there are. Nothing is
computed again, since gradients are made in the forward pass: the loss is the last thing a model does.

Liger Kernel does the same on CUDA in fused kernels: P.-L. Hsu et al., "Liger Kernel: Efficient Triton Kernels
for LLM Training", 2024, arXiv:2410.10989. The method: M. Malek, github.com/mgmalek/efficient_cross_entropy.
"""

# mypy: allow-untyped-calls
# torch annotates only part of its functions.

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.cross_entropy import CrossEntropy, answers_per_chunk
from trainer.errors import ConfigError

FIELD = "environment.cross_entropy"
LIGER_MODULE = "liger_kernel"
# Rows of the projection whose half-precision product lies beside its float32 gradient.
SLICE_ROWS = 8192


def check_available(kind: CrossEntropy, *, device: torch.device) -> None:
    """`ConfigError` where this way cannot be gone on the device."""
    if kind != "liger":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"{FIELD} = 'liger': its kernels run on CUDA, and the device is {device}.",
            field=FIELD,
            value=kind,
            remedy="Use 'auto', whose chunks need about as little memory.",
        )
    if find_spec(LIGER_MODULE) is None:
        raise ConfigError(
            f"{FIELD} = 'liger': liger-kernel is not installed.",
            field=FIELD,
            value=kind,
            remedy="pip install 'tandem[liger]', or use 'auto'.",
        )


def kind_of_run(config: Mapping[str, Any], *, wished: CrossEntropy, device: torch.device) -> CrossEntropy:
    """How a run goes on whose checkpoint has this configuration: as it began, so to the bit.

    Checkpoints from before there was a choice are `plain`. `wished` where a run of Liger's moved to a device
    without it.
    """
    environment = config.get("environment")
    began: Any = environment.get(FIELD.split(".")[1], "plain") if isinstance(environment, dict) else "plain"
    try:
        check_available(began, device=device)
    except ConfigError:
        return wished
    return cast(CrossEntropy, began)


def fusible_weight(head: Any) -> Tensor | None:
    """float32 [vocabulary, hidden] of a projection that is a plain product; None for any other.

    One that is wrapped, sharded or has a bias does more than its weight says.
    """
    is_product = type(head) is nn.Linear and head.bias is None
    return head.weight if is_product and type(head.weight) is nn.Parameter else None


def chunked_cross_entropy(hidden: Tensor, *, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods (nats) of `targets` int64 [answers], float32 scalar.

    `hidden` [answers, hidden size], `weight` [vocabulary, hidden size]. Products are in autocast's type where
    that is on, as those of a projection would be. Its gradient can be taken once.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    loss: Tensor = _Chunked.apply(hidden, weight, targets, dtype, torch.is_grad_enabled())
    return loss


def liger_cross_entropy(hidden: Tensor, *, weight: Tensor, targets: Tensor) -> Tensor:
    """The same by Liger's kernels, the gradient of the projection summed up in float32 as well."""
    # Triton and its kernels are on CUDA hosts alone, and take seconds to load.
    functional: Any = importlib.import_module(f"{LIGER_MODULE}.transformers.functional")
    loss: Tensor = functional.liger_fused_linear_cross_entropy(
        hidden, weight, targets, reduction="sum", accum_dtype=torch.float32
    )
    return loss.float()


class _Chunked(torch.autograd.Function):
    """What the backward pass returns was made in the forward pass; it only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        is_learning: bool,  # noqa: FBT001 - autograd passes by position
    ) -> Tensor:
        for_hidden, for_weight = (is_learning and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            loss = _loss_and_gradients(
                hidden.to(dtype),
                weight=weight.to(dtype),
                targets=targets,
                grad_hidden=grad_hidden,
                grad_weight=grad_weight,
            )
        # Not saved_tensors: they would be held until after their gradients were passed on, and a tied
        # embedding's gradient would be added to this one in a third of the kind instead of in place.
        ctx.gradients = (grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of a chunked cross-entropy can be taken once")
        scaled = [None if gradient is None else gradient.mul_(outer[0]) for gradient in gradients]
        return (*scaled, None, None, None)


def _loss_and_gradients(
    hidden: Tensor,
    *,
    weight: Tensor,
    targets: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
) -> Tensor:
    """The loss; gradients are written into `grad_hidden` and added to `grad_weight` where they are given."""
    num_answers, vocab_size = len(targets), len(weight)
    size = answers_per_chunk(num_answers, vocab_size=vocab_size)
    room = hidden.new_empty((size, vocab_size), dtype=torch.float32)
    product = room if weight.dtype == torch.float32 else torch.empty_like(room, dtype=weight.dtype)
    loss = room.new_zeros(())
    for start in range(0, num_answers, size):
        answers = slice(start, min(start + size, num_answers))
        part, logits = hidden[answers], room[: answers.stop - start]
        gradient = product[: answers.stop - start]
        torch.mm(part, weight.t(), out=gradient)
        if product is not room:
            logits.copy_(gradient)
        loss += _to_gradient(logits, targets=targets[answers])
        if product is not room:
            gradient.copy_(logits)
        if grad_hidden is not None:
            grad_hidden[answers] = gradient @ weight
        if grad_weight is not None:
            _add_product(grad_weight, gradient=gradient, hidden=part)
    return loss


def _to_gradient(logits: Tensor, *, targets: Tensor) -> Tensor:
    """Sum of a chunk's losses; its logits become the gradient of that sum, in place."""
    where = targets[:, None]
    picked, highest = logits.gather(1, where), logits.amax(1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(1, keepdim=True)
    logits.div_(total).scatter_add_(1, where, torch.full_like(picked, -1.0))
    return (total.log() + highest - picked).sum()


def _add_product(grad_weight: Tensor, *, gradient: Tensor, hidden: Tensor) -> None:
    """Add gradient^T hidden, in float32 whatever the product's type."""
    if gradient.dtype == grad_weight.dtype:
        grad_weight.addmm_(gradient.t(), hidden)
        return
    for start in range(0, len(grad_weight), SLICE_ROWS):
        rows = slice(start, start + SLICE_ROWS)
        grad_weight[rows] += gradient[:, rows].t() @ hidden
