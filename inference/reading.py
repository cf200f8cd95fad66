"""Read prompts, and what is expected of them, in one pass; what all prompts begin with is read once."""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import Cache, DynamicCache

from inference.model import LoadedModel
from inference.prompts import EncodedRow

# A shorter beginning costs more to share than to read.
MIN_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class Reading:
    """What the model made of rows: for each the states (tokens, width) that speak of its expected tokens.

    A row without any has the one state that speaks of the token after its prompt. `cache` is padded on the
    right and holds the rows but for their last expected token.
    """

    states: list[torch.Tensor]
    cache: Cache


class Reader:
    """Reads rows whose prompts all begin with `prefix`, of which the keys and values are made once."""

    def __init__(self, loaded: LoadedModel, *, prefix: Sequence[int]) -> None:
        self._loaded = loaded
        self._decoder = loaded.model.get_decoder()
        self._prefix = DynamicCache()
        self._num_shared = len(prefix) if len(prefix) >= MIN_PREFIX_TOKENS else 0
        if self._num_shared:
            ids = torch.tensor([list(prefix)], device=loaded.device)
            self._decoder(input_ids=ids, past_key_values=self._prefix, use_cache=True)

    def read(self, rows: Sequence[EncodedRow]) -> Reading:
        """Padded on the right, so that causal attention needs no mask but for the shared beginning."""
        cache = DynamicCache(
            [
                (layer.keys.expand(len(rows), -1, -1, -1), layer.values.expand(len(rows), -1, -1, -1))
                for layer in cast("list[Any]", self._prefix.layers)
            ]
        )
        own = [[*row.prompt[self._num_shared :], *row.answer[:-1]] for row in rows]
        width = max(map(len, own))
        padded = [[*ids, *[self._loaded.pad_token_id] * (width - len(ids))] for ids in own]
        hidden = self._decoder(
            input_ids=torch.tensor(padded, device=self._loaded.device), past_key_values=cache, use_cache=True
        ).last_hidden_state
        # The state at a position speaks of the token after it.
        begins = [len(row.prompt) - self._num_shared - 1 for row in rows]
        states = [
            hidden[place, begin : begin + max(1, len(row.answer))]
            for place, (row, begin) in enumerate(zip(rows, begins, strict=True))
        ]
        return Reading(states=states, cache=cache)


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all of them begin with, their last token excepted: a state must be left to say what comes next."""
    if not prompts:
        return ()
    known = [tuple(prompt) for prompt in prompts]
    first, last = min(known), max(known)
    most = min(map(len, prompts)) - 1
    return first[: next((place for place in range(most) if first[place] != last[place]), most)]
