"""Intervals and tests. Every estimate carries its sample size and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from intelligence.errors import InvalidSample
from registry.records import Estimate

Z_95 = 1.959963984540054
PERCENTILES = (2.5, 97.5)

# Student's two-sided 95 % quantiles for 1 to 9 degrees of freedom, where the expansion is too coarse.
T_95 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)

# Bounds the memory of a bootstrap: so many drawn rows are held at once.
MAX_DRAWN_ROWS = 1 << 20

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]


def wilson_interval(num_successes: int, *, num_trials: int) -> Estimate:
    """A proportion with its Wilson score interval (Wilson 1927, JASA 22, 209).

    Honest at 0 and n: never of width 0, never outside [0, 1]. `InvalidSample` for what is no proportion.
    """
    if num_trials < 1 or not 0 <= num_successes <= num_trials:
        raise InvalidSample(f"{num_successes} successes of {num_trials} trials is no proportion.")
    share = num_successes / num_trials
    z2 = Z_95**2
    centre = (share + z2 / (2 * num_trials)) / (1 + z2 / num_trials)
    spread = share * (1 - share) / num_trials + z2 / (4 * num_trials**2)
    half = Z_95 / (1 + z2 / num_trials) * math.sqrt(spread)
    # The rounding of the last bit must not exclude the estimate itself.
    return Estimate(
        value=share,
        low=min(share, max(0.0, centre - half)),
        high=max(share, min(1.0, centre + half)),
        num_samples=num_trials,
    )


def mean_estimate(values: Sequence[float]) -> Estimate:
    """A mean with Student's t interval (Student 1908, Biometrika 6, 1).

    The values are independent draws; the interval takes their mean as normal, which the skewed losses of a
    few dozen examples are only roughly. `InvalidSample` for a value that is not finite, and for fewer than
    two: one value says nothing of its spread, and an interval of width 0 would claim certainty.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        raise InvalidSample(f"{data.size} values have no interval.", remedy="Give two or more.")
    if not np.isfinite(data).all():
        raise InvalidSample("A mean was asked of values that are not all finite.")
    mean = float(data.mean())
    half = t_95(data.size - 1) * float(data.std(ddof=1)) / math.sqrt(data.size)
    return Estimate(value=mean, low=mean - half, high=mean + half, num_samples=int(data.size))


def paired_bootstrap(
    table: Floats, *, statistics: Mapping[str, Statistic], num_resamples: int, rng: np.random.Generator
) -> dict[str, Estimate]:
    """Statistics of column means, each with its percentile interval (Efron 1979, Annals of Statistics 7, 1).

    `table` has shape (n, k): a row is a pair and is drawn whole, so that both sides of a comparison always
    see the same examples. A statistic takes means of shape (..., k) to shape (...). The interval is widened
    to hold the estimate; where all rows are equal its width is 0. `InvalidSample` for fewer than two rows
    and for values that are not finite.
    """
    if table.ndim != 2 or table.shape[0] < 2 or not np.isfinite(table).all():
        raise InvalidSample(f"A table of shape {table.shape} cannot be resampled: two finite rows or more.")
    means = _resampled_means(table, num_resamples=num_resamples, rng=rng)
    estimates = {}
    for name, statistic in statistics.items():
        value = float(statistic(table.mean(axis=0)))
        low, high = (float(bound) for bound in np.percentile(statistic(means), PERCENTILES))
        estimates[name] = Estimate(
            value=value, low=min(low, value), high=max(high, value), num_samples=table.shape[0]
        )
    return estimates


def mcnemar_p(num_gained: int, num_lost: int) -> float:
    """Two-sided exact p of McNemar's test on discordant pairs (McNemar 1947, Psychometrika 12, 153).

    Under the null a changed pair is gained or lost with probability one half: twice the binomial tail,
    at most 1. Without a changed pair it is 1.
    """
    if num_gained < 0 or num_lost < 0:
        raise InvalidSample(f"{num_gained} gained and {num_lost} lost pairs cannot be.")
    total = num_gained + num_lost
    term = tail = 1
    for count in range(min(num_gained, num_lost)):
        term = term * (total - count) // (count + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**total))


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p of no difference, from redrawn differences of shape (draws,).

    Twice the smaller share of draws on either side of zero, each counted with one draw more (Davison &
    Hinkley 1997, Bootstrap Methods, section 4.2): never 0, at most 1.
    """
    num_beyond = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * num_beyond / (1 + len(differences)))


def t_95(num_degrees: int) -> float:
    """Student's quantile; from ten degrees on by its expansion (Fisher & Cornish 1960), right to 2e-4."""
    if num_degrees <= len(T_95):
        return T_95[num_degrees - 1]
    z = Z_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(num_degrees) ** power for power, term in enumerate(terms, start=1))


def _resampled_means(table: Floats, *, num_resamples: int, rng: np.random.Generator) -> Floats:
    num_rows = table.shape[0]
    block = max(1, MAX_DRAWN_ROWS // num_rows)
    means = []
    for start in range(0, num_resamples, block):
        size = (min(block, num_resamples - start), num_rows)
        means.append(table[rng.integers(0, num_rows, size=size)].mean(axis=1))
    return np.concatenate(means)
