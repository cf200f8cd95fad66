"""Means over a few sequences with their 95 % intervals. Sequences are what was drawn, not their tokens."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from registry.values import Estimate

Sums = NDArray[np.float64]

Z_95 = 1.959963984540054


def ratio(totals: Sums, *, counts: Sums) -> Estimate:
    """Sum of `totals` over sum of `counts`, float64 [n] each, by the linearised error of a ratio.

    Cochran 1977, Sampling Techniques, 6.4; the quantile is Student's, by its first term.
    """
    num_sequences, value = len(totals), float(totals.sum() / counts.sum())
    residuals = totals - value * counts
    spread = num_sequences / (num_sequences - 1) * float((residuals**2).sum())
    half = _quantile(num_sequences - 1) * math.sqrt(spread) / float(counts.sum())
    return Estimate(value=value, low=value - half, high=value + half, num_samples=num_sequences)


def share(successes: Sums, *, counts: Sums) -> Estimate:
    """The same for a share, by Wilson's interval as if each sequence were a single draw: never too narrow."""
    num_sequences, value = len(successes), float(successes.sum() / counts.sum())
    square = Z_95**2 / num_sequences
    middle = (value + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(value * (1 - value) / num_sequences + square / (4 * num_sequences)) / (1 + square)
    return Estimate(
        value=value,
        low=max(0.0, min(value, middle - half)),
        high=min(1.0, max(value, middle + half)),
        num_samples=num_sequences,
    )


def difference(one: Estimate, other: Estimate) -> Estimate:
    """One minus the other, which were drawn independently."""
    value = one.value - other.value
    half = math.hypot(one.high - one.value, other.high - other.value)
    num_samples = min(one.num_samples, other.num_samples)
    return Estimate(value=value, low=value - half, high=value + half, num_samples=num_samples)


def _quantile(num_degrees: int) -> float:
    return Z_95 + (Z_95**3 + Z_95) / (4 * num_degrees)
