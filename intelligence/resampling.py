"""Draws samples anew from a table whose rows belong together, in bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from intelligence.errors import InvalidSample

Floats = NDArray[np.float64]

# Bounds the memory of a bootstrap: so many drawn rows are held at once.
MAX_DRAWN_ROWS = 1 << 20


def resampled_means(table: Floats, *, num_resamples: int, rng: np.random.Generator) -> Floats:
    """Column means of samples drawn with replacement (Efron 1979, Annals of Statistics 7, 1).

    `table` has shape (n, k), the result (num_resamples, k). A row is drawn whole, so that everything it
    holds is compared on the same examples. `InvalidSample` for fewer than two rows and for values that
    are not finite.
    """
    if table.ndim != 2 or table.shape[0] < 2 or not np.isfinite(table).all():
        raise InvalidSample(f"A table of shape {table.shape} cannot be resampled: two finite rows or more.")
    num_rows = table.shape[0]
    block = max(1, MAX_DRAWN_ROWS // num_rows)
    means = []
    for start in range(0, num_resamples, block):
        num_samples = min(block, num_resamples - start)
        means.append(_counts(num_rows, num_samples=num_samples, rng=rng) @ table / num_rows)
    return np.concatenate(means)


def _counts(num_rows: int, *, num_samples: int, rng: np.random.Generator) -> Floats:
    """Shape (num_samples, num_rows): how often each row was drawn. Cheaper than copying the rows."""
    drawn = rng.integers(0, num_rows, size=(num_samples, num_rows))
    drawn += np.arange(num_samples)[:, None] * num_rows
    counts = np.bincount(drawn.ravel(), minlength=num_samples * num_rows)
    return counts.reshape(num_samples, num_rows).astype(np.float64)
