"""The rows that a pass generates for: a rectangle of cached tokens, padded on the left, with room to grow.

Each step writes its keys and values into buffers that are there already, where transformers' own cache copies
all it holds. A row that ends gives its place to the last one.
"""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from inference.model import LoadedModel

ROOM_COLUMNS = 16  # steps between two copies of the cache


@dataclass(frozen=True)
class Newcomers:
    """Rows of a cache by their places in it: the first `lengths` columns of each, and the token to come."""

    keys: Sequence[int]
    rows: Sequence[int]
    lengths: Sequence[int]
    tokens: Sequence[int]


class RunningRows:
    """Rows under way, by the caller's `keys`. The next token of each is known and not yet in the cache."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._cache: Cache | None = None
        self._starts = self._lengths = self._tokens = torch.empty(0, dtype=torch.long, device=loaded.device)
        self.keys: list[int] = []

    @property
    def num_columns(self) -> int:
        """Tokens that the cache has room for in each row."""
        return 0 if self._cache is None else int(_layers(self._cache)[0].num_columns)

    @property
    def num_columns_at_step(self) -> int:
        """The same at the next step, for which more room may have to be made."""
        return 0 if self._cache is None else max(self.num_columns, self._cache.get_seq_length() + 1)

    def join(self, newcomers: Newcomers, *, cache: Cache) -> None:
        """Take over rows of a cache that is padded on the right; it is used up, a layer at a time."""
        if not newcomers.keys:
            return
        device = self._loaded.device
        lengths = torch.tensor(newcomers.lengths, device=device)
        self._lengths = torch.cat([self._lengths, lengths])
        width = int(self._lengths.max())
        # Each row's last columns, so that all end together; padding before them.
        columns = (torch.arange(width, device=device) - (width - lengths)[:, None]).clamp(min=0)
        rows = torch.tensor(newcomers.rows, device=device)
        layers, mine = _layers(cache), [] if self._cache is None else _layers(self._cache)
        for place, new in enumerate(layers):
            parts = [_taken(part, rows, columns=columns) for part in (new.keys, new.values)]
            if mine:
                old, mine[place] = mine[place], None
                parts = [
                    torch.cat([_wide(theirs, width=width), ours])
                    for theirs, ours in zip((old.keys, old.values), parts, strict=True)
                ]
            layers[place] = RoomyLayer(*parts)
        self._cache, self._starts = cache, width - self._lengths
        self.keys += newcomers.keys
        self._tokens = torch.cat([self._tokens, torch.tensor(newcomers.tokens, device=device)])

    def step(self) -> torch.Tensor:
        """Read the next token of each row; logits (rows, vocabulary) of the one after it."""
        if self._cache is None:
            raise ValueError("no row is under way")
        width = self._cache.get_seq_length() + 1
        is_token = torch.arange(width, device=self._loaded.device) >= self._starts[:, None]
        logits: torch.Tensor = self._loaded.model(
            input_ids=self._tokens[:, None],
            attention_mask=is_token.long(),
            position_ids=self._lengths[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._lengths = self._lengths + 1
        return logits[:, -1].float()

    def go_on(self, tokens: torch.Tensor) -> None:
        """The next token (rows,) of each row."""
        self._tokens = tokens

    def drop(self, keys: Collection[int]) -> None:
        """Rows that ended leave; the last ones take their places."""
        num_left = sum(key not in keys for key in self.keys)
        if num_left == len(self.keys):
            return
        holes = [place for place in range(num_left) if self.keys[place] in keys]
        movers = [place for place in range(num_left, len(self.keys)) if self.keys[place] not in keys]
        for hole, mover in zip(holes, movers, strict=True):
            self.keys[hole] = self.keys[mover]
        del self.keys[num_left:]
        if not num_left or self._cache is None:
            self._cache = None
            self._lengths = self._starts = self._tokens = self._lengths[:0]
            return
        for vector in (self._lengths, self._starts, self._tokens):
            vector[holes] = vector[movers]
        self._lengths, self._starts = self._lengths[:num_left], self._starts[:num_left]
        self._tokens = self._tokens[:num_left]
        for layer in _layers(self._cache):
            layer.move(movers, holes=holes, num_rows=num_left)


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (rows, heads, columns, width), with room for more columns."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._buffers = (keys, values)
        self._look(len(keys), end=keys.shape[-2])

    @property
    def num_columns(self) -> int:
        """Columns that there is room for."""
        return self._buffers[0].shape[-2]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind what is there; all of it."""
        del args, kwargs
        num_rows, end = len(key_states), self._num_written + key_states.shape[-2]
        if end > self.num_columns:
            more = end - self.num_columns + ROOM_COLUMNS
            keys, values = (functional.pad(part[:num_rows], (0, 0, 0, more)) for part in self._buffers)
            self._buffers = (keys, values)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:num_rows, :, self._num_written : end] = states
        return self._look(num_rows, end=end)

    def move(self, movers: Sequence[int], *, holes: Sequence[int], num_rows: int) -> None:
        """Rows at `movers` go to `holes`; `num_rows` are left."""
        for buffer in self._buffers if holes else ():
            buffer[holes] = buffer[movers]
        self._look(num_rows, end=self._num_written)

    def _look(self, num_rows: int, *, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (part[:num_rows, :, :end] for part in self._buffers)
        self.keys, self.values, self._num_written = keys, values, end
        return keys, values


def _taken(tensor: torch.Tensor, rows: torch.Tensor, *, columns: torch.Tensor) -> torch.Tensor:
    """(rows, heads, columns, width) of some rows, with the columns of each in an order of its own."""
    heads = torch.arange(tensor.shape[1], device=tensor.device)
    return tensor[rows[:, None, None], heads[None, :, None], columns[:, None, :]]


def _wide(tensor: torch.Tensor, *, width: int) -> torch.Tensor:
    """With padding before the first column, or without columns that no row needs any more."""
    return functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0))


def _layers(cache: Cache) -> list[Any]:
    """Every layer keeps all its keys and values, whatever the model's attention: the mask decides."""
    return cast("list[Any]", cache.layers)
