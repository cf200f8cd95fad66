"""The loss on answer tokens alone, without an attention mask and without logits nobody asked for.

Rows are padded on the right. With causal attention no real token sees a later one, hence none sees the
padding, and what padding sees is never read: no mask is needed, which keeps the fast attention kernels.
Hidden states are picked at the positions that predict an answer token before the output projection, so
logits exist for those alone, and where they are many for a chunk of those at a time. At a vocabulary of
151 936 this is most of the memory of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer.core.batching import Indices
from trainer.core.cross_entropy import FIELD, chunked_cross_entropy, fusible_weight, liger_cross_entropy
from trainer.core.data import TokenizedDataset
from trainer.core.fused_layers import picks_places
from trainer.core.packed_attention import Segments
from trainer.cross_entropy import CrossEntropy, is_chunked
from trainer.errors import ConfigError

PADDING_ID = 0  # any id will do: nothing that is read depends on it


@dataclass(frozen=True)
class Batch:
    """`input_ids` int64 [rows, length - 1]; `targets` int64 [answers], each predicted at `positions`
    int64 [answers] of the flattened input. `num_tokens` counts real tokens, `num_answers` the targets.
    `options` go to the model: of a packed batch its position ids and segments."""

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    num_tokens: int
    num_answers: int
    options: Mapping[str, Any] = field(default_factory=dict)


def collate(dataset: TokenizedDataset, *, indices: Indices, device: torch.device) -> Batch:
    """Sequences as one right-padded batch; the last token of a row is only ever a target."""
    lengths = dataset.lengths[indices]
    width = int(lengths.max())
    # Real places of the padded matrix, and the same tokens' places in the flat data, row by row.
    is_real = np.arange(width) < lengths[:, None]
    source = (dataset.starts[indices][:, None] + np.arange(width))[is_real]
    tokens = np.full(is_real.shape, PADDING_ID, dtype=np.int64)
    tokens[is_real] = dataset.tokens[source]
    is_answer = np.zeros(is_real.shape, dtype=np.bool_)
    is_answer[is_real] = dataset.is_answer[source]
    predicted = is_answer[:, 1:]  # nothing predicts a first token
    return Batch(
        input_ids=torch.from_numpy(np.ascontiguousarray(tokens[:, :-1])).to(device),
        positions=torch.from_numpy(np.flatnonzero(predicted)).to(device),
        targets=torch.from_numpy(tokens[:, 1:][predicted]).to(device),
        num_tokens=int(lengths.sum()),
        num_answers=int(predicted.sum()),
    )


def pack(dataset: TokenizedDataset, *, indices: Indices, device: torch.device) -> Batch:
    """The same sequences end to end in one row, without padding; see `trainer/core/packed_attention.py`."""
    lengths = dataset.lengths[indices] - 1  # the last token of each is only ever a target
    starts = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    source = places + np.repeat(dataset.starts[indices], lengths)
    predicted = np.flatnonzero(dataset.is_answer[source + 1])
    targets = dataset.tokens[source[predicted] + 1].astype(np.int64)
    segments = Segments(
        lengths=tuple(lengths.tolist()), starts=torch.from_numpy(starts.astype(np.int32)).to(device)
    )
    return Batch(
        input_ids=torch.from_numpy(dataset.tokens[source].astype(np.int64)[None]).to(device),
        positions=torch.from_numpy(predicted).to(device),
        targets=torch.from_numpy(targets).to(device),
        num_tokens=int(dataset.lengths[indices].sum()),
        num_answers=len(predicted),
        options={"position_ids": torch.from_numpy(places[None]).to(device), "segments": segments},
    )


def answer_loss_sum(model: Any, *, batch: Batch, kind: CrossEntropy = "auto") -> Tensor:
    """Sum of the negative log-likelihoods (nats) of a batch's answer tokens, float32 scalar.

    `kind` says how; all agree but for rounding. `ConfigError` where the model cannot go that way.
    """
    hidden, head = _answer_states(model, batch=batch), model.get_output_embeddings()
    weight = fusible_weight(head)
    if weight is None and kind in ("chunked", "liger"):
        raise _not_fusible(kind, head=head)
    if weight is not None and kind == "liger":
        return liger_cross_entropy(hidden, weight=weight, targets=batch.targets)
    if weight is not None and is_chunked(kind, num_answers=batch.num_answers, vocab_size=len(weight)):
        return chunked_cross_entropy(hidden, weight=weight, targets=batch.targets)
    return functional.cross_entropy(head(hidden).float(), batch.targets, reduction="sum")


def answer_logits(model: Any, *, batch: Batch) -> Tensor:
    """float32 [answers, vocabulary]: what the model predicts where an answer token follows."""
    logits: Tensor = model.get_output_embeddings()(_answer_states(model, batch=batch))
    return logits.float()


def _answer_states(model: Any, *, batch: Batch) -> Tensor:
    """[answers, hidden size]: the last hidden states where an answer token follows."""
    decoder, asked = model.base_model, {"input_ids": batch.input_ids, "use_cache": False, **batch.options}
    if picks_places(decoder):
        picked: Tensor = decoder(**asked, places=batch.positions).last_hidden_state
        return picked
    hidden: Tensor = decoder(**asked).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, batch.positions)


def _not_fusible(kind: CrossEntropy, *, head: Any) -> ConfigError:
    return ConfigError(
        f"{FIELD} = {kind!r}: the model's output projection ({type(head).__name__}) is no plain product.",
        field=FIELD,
        value=kind,
        remedy="Use 'auto' or 'plain'.",
    )
