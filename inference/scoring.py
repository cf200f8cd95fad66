"""Teacher-forced log-likelihood of expected answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference.batches import DEFAULT_LIMITS, BatchLimits, batches_by_length, pad_left
from inference.errors import OutOfMemory
from inference.model import LoadedModel
from inference.prompts import EncodedRow


@dataclass(frozen=True)
class Score:
    """Mean nats a token of the answer, end of turn included; `None` with `problem` where unknown."""

    loss: float | None
    num_tokens: int
    problem: str = ""


def score(
    loaded: LoadedModel, rows: Sequence[EncodedRow], *, limits: BatchLimits = DEFAULT_LIMITS
) -> list[Score]:
    """Negative log-likelihood of each row's answer given its prompt, in the order of `rows`.

    A row longer than the model's positions, or whose loss is not finite, is unknown. Raises `OutOfMemory`.
    """
    scores: list[Score | None] = [_too_long(loaded, row) for row in rows]
    todo = [index for index, known in enumerate(scores) if known is None]
    num_logits = loaded.model.get_input_embeddings().num_embeddings
    for batch in batches_by_length(
        [len(rows[index].prompt) + len(rows[index].answer) for index in todo],
        limits=limits,
        logits_per_row=[(len(rows[index].answer) + 1) * num_logits for index in todo],
    ):
        indices = [todo[place] for place in batch]
        for index, result in zip(indices, _score_batch(loaded, [rows[i] for i in indices]), strict=True):
            scores[index] = result
    return [result for result in scores if result is not None]


def _too_long(loaded: LoadedModel, row: EncodedRow) -> Score | None:
    num_tokens = len(row.prompt) + len(row.answer)
    if num_tokens <= loaded.max_positions:
        return None
    problem = f"prompt and answer have {num_tokens} tokens; the model reads {loaded.max_positions}"
    return Score(loss=None, num_tokens=len(row.answer), problem=problem)


def _score_batch(loaded: LoadedModel, rows: Sequence[EncodedRow]) -> list[Score]:
    input_ids, mask, positions = pad_left(loaded, [row.prompt + row.answer for row in rows])
    # Rows end together, so the last positions hold every answer: no logits are made for prompts.
    num_kept = max(len(row.answer) for row in rows) + 1
    try:
        with torch.inference_mode():
            logits = loaded.model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=num_kept,
            ).logits
            sums = [_answer_loss(logits[place], row) for place, row in enumerate(rows)]
            losses = torch.stack(sums).tolist()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"Scoring {tuple(input_ids.shape)} tokens exceeds the memory of {loaded.device}.",
            remedy="Lower the batch limits, or free the device.",
        ) from error
    return [_score_of(loss, num_tokens=len(row.answer)) for loss, row in zip(losses, rows, strict=True)]


def _answer_loss(logits: torch.Tensor, row: EncodedRow) -> torch.Tensor:
    num_tokens = len(row.answer)
    # The logits at a position speak of the token after it.
    predicted = logits[-num_tokens - 1 : -1].float()
    expected = torch.tensor(row.answer, device=logits.device)
    return torch.nn.functional.cross_entropy(predicted, expected, reduction="mean")


def _score_of(loss: float, *, num_tokens: int) -> Score:
    if math.isfinite(loss):
        return Score(loss=loss, num_tokens=num_tokens)
    return Score(loss=None, num_tokens=num_tokens, problem=f"the loss is {loss}")
