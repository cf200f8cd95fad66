"""Continuous batching: sequences are generated together; new ones join between two steps.

Orca's iteration-level scheduling (Yu et al. 2022, OSDI, section 3.1) over one padded key-value cache. Every
sequence keeps its own settings and its own randomness, so that its reply is the one it would get alone.
"""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import DynamicCache

from inference.batches import pad_left
from inference.errors import OutOfMemory
from inference.model import LoadedModel
from inference.penalties import ProfilePenalties, penalised, penalties_for, told
from inference.sampling import choose_tokens, is_drawn, row_generator, tempered_logprobs
from registry.records import GenerationSettings

# Padding that nobody needs any more is cut away once it is this wide: each cut copies the cache.
TRIM_TOKENS = 32


@dataclass(frozen=True)
class Candidate:
    """A token that might have come, and the log-probability the model gave it."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class NextToken:
    """A sequence's next token; its log-probability is NaN where the logits were not finite."""

    key: int
    token_id: int
    logprob: float
    likeliest: tuple[Candidate, ...] = ()
    tempered: tuple[float, ...] = ()


@dataclass(frozen=True)
class Admission:
    """A sequence that wants to join. `key` names it; `num_likeliest` tokens a step are told."""

    key: int
    prompt: tuple[int, ...]
    settings: GenerationSettings
    num_likeliest: int = 0


class RunningBatch:
    """The sequences under way with one model: a rectangle of cached tokens, padded on the left."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._rows: list[Admission] = []
        self._generators: list[torch.Generator] = []
        self._penalties: list[ProfilePenalties | None] = []
        self._cache = DynamicCache()
        self._input_ids = self._mask = self._positions = torch.empty(0, 0, dtype=torch.long)

    @property
    def keys(self) -> list[int]:
        """The sequences under way."""
        return [row.key for row in self._rows]

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the cache holds, padding included."""
        return self._mask.numel()

    def admit(self, newcomers: Sequence[Admission]) -> list[NextToken]:
        """Read the prompts in one pass and join them to the batch; the first token of each.

        Raises `OutOfMemory`; the sequences under way are then as they were.
        """
        with torch.inference_mode(), _told_if_memory_is_short(self._loaded):
            joining = RunningBatch(self._loaded)
            joining._begin(newcomers)
            tokens = joining._next()
            self._join(joining)
            return tokens

    def step(self) -> list[NextToken]:
        """One more token for every sequence. Raises `OutOfMemory`."""
        with torch.inference_mode(), _told_if_memory_is_short(self._loaded):
            return self._next()

    def drop(self, keys: Collection[int]) -> None:
        """Sequences that ended or that nobody waits for leave, and take their part of the cache with them."""
        places = [place for place, row in enumerate(self._rows) if row.key not in keys]
        if len(places) == len(self._rows):
            return
        self._rows = [self._rows[place] for place in places]
        self._generators = [self._generators[place] for place in places]
        self._penalties = [self._penalties[place] for place in places]
        if not places:
            self._cache = DynamicCache()
            self._mask = self._mask[:0]
            return
        with torch.inference_mode():
            index = torch.tensor(places, device=self._loaded.device)
            self._cache.batch_select_indices(index)
            self._input_ids, self._mask = self._input_ids[index], self._mask[index]
            self._positions = self._positions[index]
            self._trim()

    def _begin(self, rows: Sequence[Admission]) -> None:
        prompts = [row.prompt for row in rows]
        self._rows = list(rows)
        self._generators = [row_generator(row.settings.seed, prompt=row.prompt) for row in rows]
        self._penalties = [penalties_for(self._loaded, prompt) for prompt in prompts]
        self._input_ids, self._mask, self._positions = pad_left(self._loaded, prompts)

    def _next(self) -> list[NextToken]:
        logits = (
            self._loaded.model(
                input_ids=self._input_ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        tokens = self._choose(penalised(logits, penalties=self._penalties))
        told(tokens, penalties=self._penalties)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        temperatures = self._loaded.confidence_temperatures
        tempered = tempered_logprobs(logits, tokens=tokens, temperatures=temperatures)
        self._input_ids = tokens[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        return [
            NextToken(
                row.key,
                token_id,
                logprob,
                _likeliest(logits[place], count=row.num_likeliest),
                tempered=tuple(found),
            )
            for place, (row, token_id, logprob, found) in enumerate(
                zip(self._rows, tokens.tolist(), logprobs.tolist(), tempered.tolist(), strict=True)
            )
        ]

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest for all at once, then those that draw, each with its own settings and generator."""
        tokens = logits.argmax(dim=-1)
        for place, row in enumerate(self._rows):
            if is_drawn(row.settings):
                generators = [self._generators[place]]
                one = logits[place : place + 1]
                tokens[place] = choose_tokens(one, settings=row.settings, generators=generators)[0][0]
        return tokens

    def _join(self, joining: RunningBatch) -> None:
        """Pad both on the left to the same width and stack them. The mask is one ahead of the cache."""
        if self._rows:
            width = max(self._mask.shape[1], joining._mask.shape[1])
            joining._cache = _joined(self._cache, joining._cache, width=width - 1)
            joining._mask = _stack(self._mask[..., None], joining._mask[..., None], width=width)[..., 0]
            joining._input_ids = torch.cat([self._input_ids, joining._input_ids])
            joining._positions = torch.cat([self._positions, joining._positions])
        # Taken over at the end, all at once: a join that fails for want of memory changes nothing.
        self._cache, self._mask = joining._cache, joining._mask
        self._input_ids, self._positions = joining._input_ids, joining._positions
        self._rows += joining._rows
        self._generators += joining._generators
        self._penalties += joining._penalties

    def _trim(self) -> None:
        """Cut columns that are padding in every row that is left."""
        num_unused = int(self._mask.argmax(dim=1).min())
        if num_unused < TRIM_TOKENS:
            return
        self._mask = self._mask[:, num_unused:]
        for layer in _layers(self._cache):
            # Copied, since a view would keep the whole of the old cache alive.
            layer.keys = layer.keys[..., num_unused:, :].contiguous()
            layer.values = layer.values[..., num_unused:, :].contiguous()


def _joined(mine: DynamicCache, theirs: DynamicCache, *, width: int) -> DynamicCache:
    pairs = zip(_layers(mine), _layers(theirs), strict=True)
    return DynamicCache(
        [
            (_stack(one.keys, other.keys, width=width), _stack(one.values, other.values, width=width))
            for one, other in pairs
        ]
    )


def _layers(cache: DynamicCache) -> list[Any]:
    """Every layer keeps all its keys and values, whatever the model's attention: the mask decides."""
    return cast("list[Any]", cache.layers)


def _stack(mine: torch.Tensor, theirs: torch.Tensor, *, width: int) -> torch.Tensor:
    return torch.cat([_pad_left(mine, width=width), _pad_left(theirs, width=width)])


def _pad_left(tensor: torch.Tensor, *, width: int) -> torch.Tensor:
    """Zeros before the second last dimension, up to `width`."""
    return functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0))


def _likeliest(logits: torch.Tensor, *, count: int) -> tuple[Candidate, ...]:
    if not count:
        return ()
    found = (logits - logits.logsumexp(dim=-1)).topk(min(count, len(logits)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return tuple(Candidate(token_id, logprob) for token_id, logprob in pairs)


@contextmanager
def _told_if_memory_is_short(loaded: LoadedModel) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"The requests under way exceed the memory of {loaded.device}.",
            remedy="Try again shortly; lower max_batch_tokens if it comes again.",
        ) from error
