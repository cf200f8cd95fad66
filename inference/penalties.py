"""A profile's pull on generation, as a logits processor in the manner of transformers, one for each sequence.

The confidence and log-probabilities that are told stay the model's own: only the choice is pulled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from inference.model import TextModel
from registry.profiles.base import Penalties

# A stop text is looked for in the last tokens of the reply: it is a few characters, at worst one a byte.
TAIL_TOKENS = 64


class ProfilePenalties(LogitsProcessor):
    """Adds a profile's penalties to one sequence's logits.

    Called with the token ids generated so far (1, n) and logits (1, vocabulary), once for each token in turn.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        penalties: Penalties,
        stop_texts: Sequence[str],
        end_token_ids: frozenset[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._penalties = penalties
        self._stop_texts = tuple(stop_texts)
        self._end_token_ids = sorted(end_token_ids)
        self._unwanted = [
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in penalties.unwanted
        ]
        self._num_at_stop: int | None = None
        self.generated: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The logits with the penalties added, a new tensor (1, vocabulary)."""
        generated = input_ids[0].tolist()
        pulled = scores.clone()
        for ids in self._unwanted:
            if ids and (len(ids) == 1 or tuple(generated[1 - len(ids) :]) == ids[:-1]):
                pulled[:, ids[-1]] += self._penalties.unwanted_at(len(generated))
        self._look_for_stop(generated)
        if self._num_at_stop is not None:
            ends = pulled[:, self._end_token_ids] + self._penalties.end_bonus
            pulled += self._penalties.stopped_at(len(generated) - self._num_at_stop)
            pulled[:, self._end_token_ids] = ends
        return pulled

    def _look_for_stop(self, generated: list[int]) -> None:
        if self._num_at_stop is None and generated and self._stop_texts:
            tail = self._tokenizer.decode(generated[-TAIL_TOKENS:], skip_special_tokens=False)
            if any(text in tail for text in self._stop_texts):
                self._num_at_stop = len(generated)


def penalties_for(loaded: TextModel, prompt: Sequence[int]) -> ProfilePenalties | None:
    """The processor of a new sequence; None where the model's profile penalises nothing."""
    profile = loaded.profile
    if profile.penalties is None:
        return None
    text = loaded.tokenizer.decode(list(prompt), skip_special_tokens=False)
    return ProfilePenalties(
        loaded.tokenizer,
        penalties=profile.penalties,
        stop_texts=profile.stop_texts(text),
        end_token_ids=loaded.stop_token_ids,
    )


def penalised(logits: torch.Tensor, *, penalties: Sequence[ProfilePenalties | None]) -> torch.Tensor:
    """Logits (rows, vocabulary) with each row's penalties; the very tensor where no row has any."""
    if all(one is None for one in penalties):
        return logits
    rows = []
    for place, one in enumerate(penalties):
        row = logits[place : place + 1]
        rows.append(row if one is None else one(torch.tensor([one.generated], dtype=torch.long), row))
    return torch.cat(rows)


def told(tokens: torch.Tensor, *, penalties: Sequence[ProfilePenalties | None]) -> None:
    """Note which token each row got."""
    for token, one in zip(tokens.tolist(), penalties, strict=True):
        if one is not None:
            one.generated.append(token)
