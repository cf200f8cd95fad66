"""Rows packed into batches of a token budget by best fit, the longest first.

D. S. Johnson, "Near-optimal bin packing algorithms", 1973: little more than 11/9 of the fewest possible bins,
and with the lengths of chat rows almost no room is left. Rows of one length are placed all at once, so that a
million rows take as many array operations as there are lengths.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def packed(longest_first: Positions, *, tokens_per_batch: int) -> tuple[Positions, Positions]:
    """Positions in `longest_first` (int64 [rows]), batch after batch, and the bounds of the batches.

    Batch i is `positions[bounds[i]:bounds[i + 1]]`. A row longer than the budget is alone.
    """
    batch_of = np.empty(len(longest_first), dtype=np.int64)
    room = np.empty(0, dtype=np.int64)
    changes = np.flatnonzero(np.diff(longest_first)) + 1
    for start, stop in itertools.pairwise([0, *changes.tolist(), len(longest_first)]):
        length = int(longest_first[start])
        count = stop - start
        fitting = np.flatnonzero(room >= length)
        fitting = fitting[np.argsort(room[fitting], kind="stable")]  # the tightest first
        placed = np.repeat(fitting, room[fitting] // length)[:count]
        fresh = np.arange(count - len(placed)) // max(1, tokens_per_batch // length) + len(room)
        num_fresh = int(fresh[-1]) + 1 - len(room) if len(fresh) else 0
        batch_of[start:stop] = np.concatenate([placed, fresh])
        room = np.concatenate([room, np.full(num_fresh, max(tokens_per_batch, length), dtype=np.int64)])
        room -= length * np.bincount(batch_of[start:stop], minlength=len(room))
    bounds = np.cumsum(np.bincount(batch_of, minlength=len(room)))
    return np.argsort(batch_of, kind="stable"), np.concatenate([[0], bounds])
