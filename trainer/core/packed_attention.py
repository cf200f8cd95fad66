"""Attention over rows that are laid end to end in one sequence, none of which sees another.

Padding is neither stored nor computed. On CUDA in half precision it is PyTorch's kernel for rows of any
length (FlashAttention; Dao et al. 2022); elsewhere each row is attended to by itself, which gives the same.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from trainer.errors import ConfigError

NAME = "tandem_packed"
FIELD = "environment.batching"
HALF_TYPES = (torch.bfloat16, torch.float16)
MIN_CAPABILITY = (8, 0)  # Ampere: the kernel needs it

Batching = Literal["auto", "buckets", "packed"]


@dataclass(frozen=True)
class Segments:
    """Rows of a packed batch: `lengths` of each, `starts` int32 [rows + 1] on the device."""

    lengths: tuple[int, ...]
    starts: Tensor


def wants_packing(setting: Batching, *, device: torch.device, dtype: torch.dtype, model: Path) -> bool:
    """Whether batches are packed; `auto`: where the kernel is there and the model attends to every token.

    `ConfigError` where it is asked for and the model's attention is of another kind.
    """
    problem = _problem(model)
    if setting == "packed" and problem:
        raise ConfigError(
            f"{FIELD} = 'packed': the model {problem}, which packed rows do not have.",
            field=FIELD,
            value=setting,
            remedy="Use 'auto' or 'buckets'.",
        )
    if setting != "auto":
        return setting == "packed"
    has_kernel = device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
    return has_kernel and dtype in HALF_TYPES and not problem


def suits_packing(model: Path) -> bool:
    """True where the model attends to every token before one, as packed rows do."""
    return not _problem(model)


def use_packed_attention(model: Any) -> None:
    """From here on the model takes `segments`; without them it attends as before."""
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def packed_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """Causal attention: [rows, heads, tokens, width] to [rows, tokens, heads, width], as transformers asks.

    With `segments` there is one row of several laid end to end.
    """
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    if segments is None:
        attended = _causal(query, key, value, dropout_p=dropout, **options)
    elif _has_kernel(value) and not dropout:
        return _by_kernel(query, key, value, segments=segments, **options), None
    else:
        split = [tensor.split(segments.lengths, dim=2) for tensor in (query, key, value)]
        attended = torch.cat(
            [_causal(*row, dropout_p=dropout, **options) for row in zip(*split, strict=True)], dim=2
        )
    return attended.transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True, **options)


def _has_kernel(value: Tensor) -> bool:
    return value.is_cuda and value.dtype in HALF_TYPES


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, *, segments: Segments, **options: Any) -> Tensor:
    # Norms leave queries and keys in float32, while values have the type of the arithmetic.
    queries, keys, values = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    starts, longest = segments.starts, max(segments.lengths)
    attended: Any = varlen_attn(
        queries, keys, values, starts, starts, longest, longest, window_size=(-1, 0), **options
    )
    return attended.unsqueeze(0)  # type: ignore[no-any-return]  # varlen_attn may be asked for more


def _problem(model: Path) -> str:
    """What a model's config.json says of attention that is more than causal; empty if nothing."""
    config = json.loads((model / "config.json").read_text())
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        return f"has layers of {', '.join(sorted(kinds))}"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        return "looks back a limited number of tokens"
    if config.get("attn_logit_softcapping"):
        return "caps its attention scores"
    return ""
