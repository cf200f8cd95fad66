"""Attention over rows that are laid end to end in one sequence, none of which sees another.

Padding is neither stored nor computed. On CUDA in half precision it is PyTorch's kernel for rows of any
length (FlashAttention; Dao et al. 2022); elsewhere each row is attended to by itself, which gives the same.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trainer.core.runtime import only_looking
from trainer.errors import ConfigError

NAME = "tandem_packed"
FIELD = "environment.batching"
HALF_TYPES = (torch.bfloat16, torch.float16)
MIN_CAPABILITY = (8, 0)  # Ampere: the kernel needs it
# Their classes promise that attention can be replaced; they build masks of their own instead, or drop what
# tells the rows apart on the way down. Others are found by the probe.
UNFAITHFUL = frozenset({"doge", "nemotron"})
# What a model is probed with; two ways to the same hidden states differ by rounding alone.
PROBED_ROWS = ((5, 3, 4, 1, 2), (2, 4, 1))
TOLERANCE = 1e-3

Batching = Literal["auto", "buckets", "packed"]


@dataclass(frozen=True)
class Segments:
    """Rows of a packed batch: `lengths` of each, `starts` int32 [rows + 1] on the device."""

    lengths: tuple[int, ...]
    starts: Tensor


def wants_packing(setting: Batching, *, device: torch.device, dtype: torch.dtype, model: Path) -> bool:
    """Whether batches are packed; `auto`: where the kernel is there and the model keeps packed rows apart.

    `ConfigError` where it is asked for and the model would not.
    """
    if setting == "buckets" or (setting == "auto" and not _is_fast(device, dtype=dtype)):
        return False
    problem = _problem(model)
    if setting == "packed" and problem:
        raise _unsuitable(problem, remedy="Use 'auto' or 'buckets'.")
    return not problem


def suits_packing(model: Path) -> bool:
    """True where the model attends to every token of a row before one, and to those of no other row."""
    return not _problem(model)


def use_packed_attention(model: Any) -> None:
    """From here on the model takes `segments`; without them it attends as before.

    `ConfigError` where its rows then tell of each other, whatever its class says of itself.
    """
    apart = _probed(model, rows=PROBED_ROWS)
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)
    together = _probed_together(model, rows=PROBED_ROWS)
    difference = float((apart - together).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(apart.abs().max())):
        family = model.config.model_type
        raise _unsuitable(
            f"is of the family {family}, whose packed rows tell of each other (by {difference:.3g})",
            remedy="Use 'buckets'.",
        )


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


def _is_fast(device: torch.device, *, dtype: torch.dtype) -> bool:
    """True where the kernel is there."""
    has_kernel = device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
    return has_kernel and dtype in HALF_TYPES


def _problem(model: Path) -> str:
    """What keeps a model from packed rows, as its config.json and its class tell; empty if nothing."""
    config = json.loads((model / "config.json").read_text())
    problem = _problem_of_class(model, family=str(config.get("model_type")))
    if problem:
        return problem
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        return f"has layers of {', '.join(sorted(kinds))}"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        return "looks back a limited number of tokens"
    if config.get("attn_logit_softcapping"):
        return "caps its attention scores"
    return ""


def _problem_of_class(directory: Path, *, family: str) -> str:
    """Rows are kept apart by attention alone, so it must be ours, and all that a token knows of others."""
    classes = _classes(directory)
    if not classes:
        return f"is of the family {family}, which transformers does not know as a causal language model"
    if any(kind._is_stateful for kind in classes):
        return f"is of the family {family}, which carries a state from token to token"
    if family in UNFAITHFUL or not all(kind._supports_attention_backend for kind in classes):
        return f"is of the family {family}, whose attention cannot be replaced"
    return ""


def _classes(directory: Path) -> tuple[Any, ...]:
    """Those that a model may be loaded as, found without its weights; none where transformers knows none."""
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except Exception:  # noqa: BLE001 - transformers has no root for these; loading says what is wrong
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _probed(model: Any, *, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """[tokens, hidden size]: the last hidden states of rows, each by itself."""
    device = model.get_input_embeddings().weight.device
    with only_looking(model):
        found = [
            model.base_model(input_ids=torch.tensor([row], device=device), use_cache=False) for row in rows
        ]
    return torch.cat([one.last_hidden_state[0].float() for one in found])


def _probed_together(model: Any, *, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """The same of rows laid end to end."""
    device = model.get_input_embeddings().weight.device
    starts = torch.tensor([0, *itertools.accumulate(map(len, rows))], dtype=torch.int32, device=device)
    places = [place for row in rows for place in range(len(row))]
    with only_looking(model):
        found = model.base_model(
            input_ids=torch.tensor([[token for row in rows for token in row]], device=device),
            position_ids=torch.tensor([places], device=device),
            segments=Segments(lengths=tuple(map(len, rows)), starts=starts),
            use_cache=False,
        )
    states: Tensor = found.last_hidden_state[0].float()
    return states


def _unsuitable(problem: str, *, remedy: str) -> ConfigError:
    return ConfigError(
        f"{FIELD} = 'packed': the model {problem}: rows end to end are not for it.",
        field=FIELD,
        value="packed",
        remedy=remedy,
    )
