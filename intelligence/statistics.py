"""Intervals and tests. Every estimate carries its sample size and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from registry.records import Estimate

Z_95 = 1.959963984540054
PERCENTILES = (2.5, 97.5)


def wilson_interval(num_successes: int, *, num_trials: int) -> Estimate:
    """A proportion with its Wilson score interval (Wilson 1927, JASA 22, 209).

    Honest at 0 and n: never of width 0, never outside [0, 1].
    """
    if num_trials < 1 or not 0 <= num_successes <= num_trials:
        raise ValueError(f"{num_successes} successes of {num_trials} trials is no proportion")
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
    """A mean with its normal interval, from the standard error (Miller 2024, "Adding error bars to evals").

    One value tells nothing of its spread, so its interval is the value itself and `num_samples` says 1.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError("a mean needs at least one value, and only finite ones")
    mean = float(data.mean())
    error = float(data.std(ddof=1)) / math.sqrt(data.size) if data.size > 1 else 0.0
    return Estimate(value=mean, low=mean - Z_95 * error, high=mean + Z_95 * error, num_samples=int(data.size))


def resample(num_items: int, *, num_resamples: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Bootstrap indices, shape (num_resamples, num_items) (Efron 1979).

    Pairs are resampled together: the same indices serve both sides of a comparison.
    """
    return rng.integers(0, num_items, size=(num_resamples, num_items))


def percentile_estimate(value: float, *, draws: NDArray[np.float64], num_samples: int) -> Estimate:
    """A statistic with the percentile interval of its bootstrap draws."""
    low, high = (float(bound) for bound in np.percentile(draws, PERCENTILES))
    return Estimate(value=value, low=min(low, value), high=max(high, value), num_samples=num_samples)


def mcnemar_p(num_gained: int, num_lost: int) -> float:
    """Two-sided exact p of McNemar's test on discordant pairs (McNemar 1947): 1.0 where there are none."""
    total = num_gained + num_lost
    if total == 0:
        return 1.0
    fewer = min(num_gained, num_lost)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    return float(min(1.0, 2 * tail))
