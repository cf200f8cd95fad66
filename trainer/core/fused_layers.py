"""Qwen3's norms and rotated heads in fewer passes over memory: the same arithmetic, gradients written out.

On a CPU each pass over a layer's activations costs as much as what is computed in it. A norm of transformers
takes some fourteen, there and back, and keeps both what it reads and what it normalised; here it takes nine
and keeps the latter. Queries and keys are normalised and rotated in one go. Behind its attention the last
layer computes what is asked for alone: nothing else of it is read. Beyond rounding nothing changes.

Norm: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019. Rotation: J. Su et al., "RoFormer",
2021, in the halves that transformers pairs.
"""

# mypy: allow-untyped-calls
# torch and transformers annotate only part of their functions.

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    Qwen3Model,
    Qwen3RMSNorm,
    eager_attention_forward,
)

from trainer.layers import fuses_layers


def suits_fused_layers(*, device: torch.device, dtype: torch.dtype) -> bool:
    """As the estimate of a run's memory has it."""
    return fuses_layers(device=device.type, arithmetic=str(dtype).removeprefix("torch."))


def fuse_layers(model: nn.Module) -> None:
    """From here on a model's norms and attentions of Qwen3 go this way; what is of another kind stays.

    Qwen3's decoder then takes `places` as well, int64 [places] of the flattened input, and gives the last
    hidden states [places, hidden size] of those alone: see `picks_places`.
    """
    ways: dict[type, Callable[..., Any]] = {Qwen3RMSNorm: _norm, Qwen3Attention: _attend}
    for module in model.modules():
        way = ways.get(type(module))
        if way is not None:
            vars(module)["forward"] = MethodType(way, module)
        if type(module) is Qwen3Model:
            module.layers[-1].__class__ = _LastLayer


def picks_places(decoder: nn.Module) -> bool:
    """True where a decoder takes `places`."""
    layers = getattr(decoder, "layers", None)
    return isinstance(layers, nn.ModuleList) and isinstance(layers[-1], _LastLayer)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    normed: Tensor = _Norm.apply(hidden_states, module.weight, module.variance_epsilon)
    return normed


def _attend(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    picked: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """As `Qwen3Attention.forward`, which has the word where keys and values are cached.

    With `picked` [places, hidden size] for those places alone.
    """
    if past_key_values is not None:
        attended: tuple[Tensor, Tensor | None] = Qwen3Attention.forward(
            module, hidden_states, position_embeddings, attention_mask, past_key_values, **options
        )
        return attended
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation,  # where transformers' own layer looks
        eager_attention_forward,
    )
    output, weights = attention(
        module,
        *_heads(module, hidden_states, position_embeddings=position_embeddings),
        attention_mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=module.sliding_window,
        **options,
    )
    output = output.flatten(-2).contiguous()
    if picked is not None:
        output = output.flatten(0, 1).index_select(0, picked)
    return module.o_proj(output), weights


def _heads(
    module: Any, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor]
) -> Iterator[Tensor]:
    """Queries, keys and values, each [rows, heads, tokens, width]."""
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    cosine, sine = (part.unsqueeze(2) for part in position_embeddings)  # alike for all heads
    for project, norm in ((module.q_proj, module.q_norm), (module.k_proj, module.k_norm)):
        heads = project(hidden_states).view(shape)
        yield _RotatedNorm.apply(heads, norm.weight, norm.variance_epsilon, cosine, sine).transpose(1, 2)
    yield module.v_proj(hidden_states).view(shape).transpose(1, 2)


class _LastLayer(Qwen3DecoderLayer):
    """Takes `places` as well, and gives [places, hidden size] of those alone.

    A class, since what recomputes a layer for its backward pass holds on to the class's `forward`.
    """

    def forward(  # type: ignore[override]  # what else transformers passes, it passes by name
        self, hidden_states: Tensor, *, places: Tensor | None = None, **options: Any
    ) -> Tensor:
        if places is None:
            whole: Tensor = super().forward(hidden_states, **options)
            return whole
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states), picked=places, **options
        )
        states: Tensor = hidden_states.flatten(0, 1).index_select(0, places) + attended
        ended: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return ended


class _Norm(torch.autograd.Function):
    """[..., width] and weights [width] to weights * x / sqrt(mean(x^2) + epsilon)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = _scale(states, epsilon=epsilon)
        normed = states * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, weight = ctx.saved_tensors
        return *_gradients(outer[0], ctx=ctx, normed=normed, scale=scale, weight=weight), None


class _RotatedNorm(torch.autograd.Function):
    """[rows, tokens, heads, width], normalised over the width as by `_Norm`, then each head rotated.

    With halves a, b of a head: a cos - b sin, b cos + a sin. `cosine`, `sine` [rows or 1, tokens, 1, width].
    """

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, weight: Tensor, epsilon: float, cosine: Tensor, sine: Tensor
    ) -> Tensor:
        scale = _scale(heads, epsilon=epsilon)
        normed = heads * scale
        ctx.save_for_backward(normed, scale, weight, cosine, sine)
        half = heads.shape[-1] // 2
        # Weights go into the tables, which are small: one pass over the heads less.
        rotated = normed * (cosine * weight)
        rotated[..., :half].addcmul_(normed[..., half:], sine[..., :half] * weight[half:], value=-1)
        rotated[..., half:].addcmul_(normed[..., :half], sine[..., half:] * weight[:half])
        return rotated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, weight, cosine, sine = ctx.saved_tensors
        gradient, half = outer[0], normed.shape[-1] // 2
        back = gradient * cosine
        back[..., :half].addcmul_(gradient[..., half:], sine[..., half:])
        back[..., half:].addcmul_(gradient[..., :half], sine[..., :half], value=-1)
        return *_gradients(back, ctx=ctx, normed=normed, scale=scale, weight=weight), None, None, None


def _scale(states: Tensor, *, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x^2) + epsilon) over the last dimension, which stays as 1."""
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    scale: Tensor = length.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
    return scale


def _gradients(
    gradient: Tensor, *, ctx: Any, normed: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Of what was normalised and of the weights, from that of the normalised and weighted states.

    With n the normalised states, g their gradient times the weights, d the width: scale (g - n (n . g) / d).
    """
    for_states, for_weight = ctx.needs_input_grad[:2]
    product = gradient * normed
    of_weight = product.sum(tuple(range(product.dim() - 1))) if for_weight else None
    if not for_states:
        return None, of_weight
    share = torch.matmul(product, weight).div_(len(weight)).unsqueeze(-1)
    room = torch.mul(gradient, weight, out=product)  # which was used up
    return room.addcmul_(normed, share, value=-1).mul_(scale), of_weight
