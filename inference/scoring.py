"""Teacher-forced log-likelihood of expected answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from inference.batches import DEFAULT_LIMITS, BatchLimits, batches_by_length
from inference.errors import OutOfMemory
from inference.model import LoadedModel
from inference.prompts import EncodedRow
from inference.shared_prompts import batches_of_groups, group_by_prompt, states_of_groups


@dataclass(frozen=True)
class Score:
    """Mean nats a token of the answer, end of turn included; `None` with `problem` where unknown.

    `is_greedy`: each token was the likeliest in its place, so greedy decoding would have said just this.
    """

    loss: float | None
    num_tokens: int
    problem: str = ""
    is_greedy: bool = False


def score(
    loaded: LoadedModel, rows: Sequence[EncodedRow], *, limits: BatchLimits = DEFAULT_LIMITS
) -> list[Score]:
    """Negative log-likelihood of each row's answer given its prompt, in the order of `rows`.

    A row longer than the model's positions, or whose loss is not finite, is unknown. Raises `OutOfMemory`.
    """
    scores: list[Score | None] = [too_long(loaded, row) for row in rows]
    todo = [index for index, known in enumerate(scores) if known is None]
    num_logits = loaded.model.get_input_embeddings().num_embeddings
    alone, groups = group_by_prompt(rows, todo)
    for batch in batches_by_length(
        [len(rows[index].prompt) + len(rows[index].answer) for index in alone],
        limits=limits,
        logits_per_row=[len(rows[index].answer) * num_logits for index in alone],
    ):
        indices = [alone[place] for place in batch]
        mine = [rows[index] for index in indices]
        _fill(scores, indices, found=_scored(loaded, mine, states=partial(_states, loaded, mine)))
    for shared in batches_of_groups(rows, groups, limits=limits, num_logits=num_logits):
        indices = [index for group in shared for index in group]
        states = partial(states_of_groups, loaded, rows, groups=shared)
        _fill(scores, indices, found=_scored(loaded, [rows[index] for index in indices], states=states))
    return [result for result in scores if result is not None]


def _fill(scores: list[Score | None], places: Sequence[int], *, found: Sequence[Score]) -> None:
    for place, result in zip(places, found, strict=True):
        scores[place] = result


def too_long(loaded: LoadedModel, row: EncodedRow) -> Score | None:
    num_tokens = len(row.prompt) + len(row.answer)
    if num_tokens <= loaded.max_positions:
        return None
    problem = f"prompt and answer have {num_tokens} tokens; the model reads {loaded.max_positions}"
    return Score(loss=None, num_tokens=len(row.answer), problem=problem)


def _scored(
    loaded: LoadedModel, rows: Sequence[EncodedRow], *, states: Callable[[], list[torch.Tensor]]
) -> list[Score]:
    """Logits are made for answers alone; `states` gives (tokens, width) for each row's."""
    try:
        with torch.inference_mode():
            logits = loaded.model.get_output_embeddings()(torch.cat(states())).float()
            found = _answer_losses(logits, rows)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"Scoring {len(rows)} rows at once exceeds the memory of {loaded.device}.",
            remedy="Lower the batch limits, or free the device.",
        ) from error
    return [
        score_of(loss, num_tokens=len(row.answer), is_greedy=is_greedy)
        for (loss, is_greedy), row in zip(found, rows, strict=True)
    ]


def _states(loaded: LoadedModel, rows: Sequence[EncodedRow]) -> list[torch.Tensor]:
    """Padded on the right, so that causal attention needs no mask."""
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    padded = [
        [*row.prompt, *row.answer, *[loaded.pad_token_id] * (width - len(row.prompt) - len(row.answer))]
        for row in rows
    ]
    input_ids = torch.tensor(padded, device=loaded.device)
    hidden = loaded.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    # The state at a position speaks of the token after it.
    return [
        hidden[place, len(row.prompt) - 1 : len(row.prompt) + len(row.answer) - 1]
        for place, row in enumerate(rows)
    ]


def _answer_losses(logits: torch.Tensor, rows: Sequence[EncodedRow]) -> list[tuple[float, bool]]:
    """Mean loss of each row, and whether all its tokens were the likeliest; `logits` (tokens, vocabulary)."""
    expected = torch.tensor([token for row in rows for token in row.answer], device=logits.device)
    losses = token_losses(logits, expected=expected)
    is_likeliest = logits.argmax(dim=-1) == expected
    sizes = [len(row.answer) for row in rows]
    means = torch.stack([part.mean() for part in torch.split(losses, sizes)]).tolist()
    greedy = torch.stack([part.all() for part in torch.split(is_likeliest, sizes)]).tolist()
    return list(zip(means, greedy, strict=True))


def token_losses(logits: torch.Tensor, *, expected: torch.Tensor) -> torch.Tensor:
    """Minus the log-probability of each expected token (tokens,), in nats; `logits` (tokens, vocabulary).

    Not `cross_entropy`: on a CPU it adds up a vocabulary of 151 936 one after another, and float32 loses up
    to 5e-4 nats a token in that; `logsumexp` loses 2e-6, in the same time.
    """
    return logits.logsumexp(dim=-1) - logits.gather(1, expected[:, None])[:, 0]


def score_of(loss: float, *, num_tokens: int, is_greedy: bool) -> Score:
    if math.isfinite(loss):
        return Score(loss=loss, num_tokens=num_tokens, is_greedy=is_greedy)
    return Score(loss=None, num_tokens=num_tokens, problem=f"the loss is {loss}")
