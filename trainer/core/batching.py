"""Which rows form the batch of step N: a pure function of lengths, seed and N.

Rows of similar length share a batch, so that little is padding, and a batch is as many rows as its token
budget allows. Lengths are rounded up by at most one eighth before rows are sorted by them; rows that round
to the same length change places from epoch to epoch, while the number and sizes of the batches stay the
same. Resuming needs no sampler state: the step number says everything.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainer.core.packing import packed

Indices = NDArray[np.int64]

# Up to an eighth: finer rounding saves a few tokens of padding, but sorts rows by what they teach. On words
# of 3 to 5 letters to be reversed, three seeds, the loss after 100 steps was 2.16 to 2.32 with an eighth
# and 2.35 to 2.63 with a sixteenth, each seed lower with an eighth.
ROUNDING_BITS = 3


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Batches of a whole run. `lengths` int64 [num_sequences], in tokens.

    With `is_packed` rows of any length share a batch, for those who lay them end to end without padding.
    """

    lengths: Indices
    tokens_per_batch: int
    num_epochs: int
    seed: int
    max_steps: int | None = None
    is_packed: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """The same in every epoch."""
        return len(self._bounds()) - 1

    @property
    def num_steps(self) -> int:
        """Of the whole run: every epoch in full, unless `max_steps` ends it sooner."""
        full = self.steps_per_epoch * self.num_epochs
        return full if self.max_steps is None else min(full, self.max_steps)

    def batch(self, step: int) -> Indices:
        """Sequence numbers of the batch of step `step`, counted from 0; the longest first."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, sequence = self._epoch(epoch)
        bounds, number = self._bounds(), sequence[position]
        places = slice(bounds[number], bounds[number + 1])
        return order[self._packed()[0][places]] if self.is_packed else order[places]

    # Arrays throughout: a Python object a row, or a batch, would cost gigabytes at millions of rows.
    @lru_cache(maxsize=1)  # noqa: B019 - a plan lives as long as its run
    def _epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """Rows, the longest first, and the order in which the batches that they form are taken."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))
        order = order[np.argsort(-self._rounded()[order], kind="stable")]
        return order, random.permutation(len(self._bounds()) - 1)

    @lru_cache(maxsize=1)  # noqa: B019
    def _bounds(self) -> Indices:
        if self.is_packed:
            return self._packed()[1]
        longest_first = -np.sort(-self._rounded())
        bounds = array("q", [0])
        while bounds[-1] < len(longest_first):
            num_rows = max(1, self.tokens_per_batch // int(longest_first[bounds[-1]]))
            bounds.append(min(bounds[-1] + num_rows, len(longest_first)))
        return np.frombuffer(bounds, dtype=np.int64)

    @lru_cache(maxsize=1)  # noqa: B019
    def _packed(self) -> tuple[Indices, Indices]:
        return packed(-np.sort(-self._rounded()), tokens_per_batch=self.tokens_per_batch)

    @lru_cache(maxsize=1)  # noqa: B019
    def _rounded(self) -> Indices:
        unit = 2 ** np.maximum(0, np.floor(np.log2(self.lengths)).astype(np.int64) - ROUNDING_BITS)
        rounded: Indices = -(-self.lengths // unit) * unit
        return rounded


def split_to_limit(
    indices: Indices, *, lengths: Indices, max_tokens: int | None, is_packed: bool = False
) -> Iterator[Indices]:
    """Consecutive parts of a batch, each of at most `max_tokens` or of a single row; see `batch_tokens`."""
    if max_tokens is None:
        yield indices
        return
    start = 0
    while start < len(indices):
        stop = start + 1
        while stop < len(indices):
            longer = indices[start : stop + 1]
            if batch_tokens(longer, lengths=lengths, is_packed=is_packed) > max_tokens:
                break
            stop += 1
        yield indices[start:stop]
        start = stop


def batch_tokens(indices: Indices, *, lengths: Indices, is_packed: bool) -> int:
    """What a batch costs: its tokens, with padding where it is not packed."""
    return int(lengths[indices].sum()) if is_packed else padded_tokens(indices, lengths=lengths)


def padded_tokens(indices: Indices, *, lengths: Indices) -> int:
    """Rows times the longest of them."""
    return len(indices) * int(lengths[indices].max())
