"""Intervals and tests. Every estimate carries its sample size and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from intelligence.errors import InvalidSample
from intelligence.resampling import Floats, resampled_means
from registry.records import Estimate

Z_95 = 1.959963984540054
PERCENTILES = (2.5, 97.5)

# Student's two-sided 95 % quantiles for 1 to 9 degrees of freedom, where the expansion is too coarse.
T_95 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)

Integers = NDArray[np.int64]
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
    table: Floats,
    *,
    statistics: Mapping[str, Statistic],
    num_resamples: int,
    rng: np.random.Generator,
    clusters: Integers | None = None,
) -> dict[str, Estimate]:
    """Statistics of column means, each with its percentile interval (Efron 1979, Annals of Statistics 7, 1).

    `table` has shape (n, k): a row is a pair and is drawn whole, so that both sides of a comparison always
    see the same examples. A statistic takes means of shape (..., k) to shape (...). The interval is widened
    to hold the estimate; where all rows are equal its width is 0. `clusters` has shape (n,): rows that bear
    one number are drawn together, since what they share makes them say less than as many independent rows
    (Davison & Hinkley 1997, section 3.8). `InvalidSample` for fewer than two rows or clusters and for values
    that are not finite.
    """
    if table.ndim != 2 or table.shape[0] < 2 or not np.isfinite(table).all():
        raise InvalidSample(f"A table of shape {table.shape} cannot be resampled: two finite rows or more.")
    means = redrawn_means(table, clusters=clusters, num_resamples=num_resamples, rng=rng)
    estimates = {}
    for name, statistic in statistics.items():
        value = float(statistic(table.mean(axis=0)))
        low, high = (float(bound) for bound in np.percentile(statistic(means), PERCENTILES))
        estimates[name] = Estimate(
            value=value, low=min(low, value), high=max(high, value), num_samples=table.shape[0]
        )
    return estimates


def redrawn_means(
    table: Floats, *, clusters: Integers | None, num_resamples: int, rng: np.random.Generator
) -> Floats:
    """Column means over the rows of samples drawn anew, shape (num_resamples, k), whole clusters at a time.

    `table` has shape (n, k), `clusters` (n,); without them each row is drawn by itself. `InvalidSample` where
    all rows are of one cluster.
    """
    if clusters is None:
        return resampled_means(table, num_resamples=num_resamples, rng=rng)
    totals = cluster_totals(np.column_stack([table, np.ones(len(table))]), clusters=clusters)
    if len(totals) < 2:
        raise InvalidSample("All rows are of one cluster: nothing says how far another one would lie.")
    drawn = resampled_means(totals, num_resamples=num_resamples, rng=rng)
    means: Floats = drawn[:, :-1] / drawn[:, -1:]
    return means


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


def cluster_totals(table: Floats, *, clusters: Integers | None) -> Floats:
    """Sums over the rows of each cluster, shape (clusters, k); without clusters each row is its own."""
    if clusters is None:
        return table
    numbers, places = np.unique(clusters, return_inverse=True)
    totals = np.zeros((len(numbers), table.shape[1]))
    np.add.at(totals, places, table)
    return totals


def standard_error(values: Floats, *, clusters: Integers | None = None) -> float:
    """Of the mean of `values`, shape (n,); clustered where rows share something (Miller 2024, section 2.2).

    With G clusters: sqrt(G / (G - 1) * sum over clusters of (sum of deviations)^2) / n, which for clusters
    of one row is s / sqrt(n). `InvalidSample` for fewer than two clusters.
    """
    deviations = (values - values.mean())[:, None]
    totals = cluster_totals(deviations, clusters=clusters)
    if len(totals) < 2:
        raise InvalidSample(f"{len(totals)} independent values have no standard error.")
    correction = len(totals) / (len(totals) - 1)
    return float(np.sqrt(correction * np.square(totals).sum())) / len(values)


def p_above_zero(values: Floats, *, clusters: Integers | None = None) -> float:
    """One-sided p of the hypothesis that the mean is at most 0: Student's t, its errors clustered.

    The tail by Wallace's transformation to a normal (1959, Annals of Mathematical Statistics 30, 1121),
    right to 1 % of p from ten degrees of freedom on. Values that do not differ at all decide by their sign.
    """
    mean, error = float(values.mean()), standard_error(values, clusters=clusters)
    if error <= abs(mean) * 1e-12:
        return 0.0 if mean > 0 else 1.0
    num_clusters = len(values) if clusters is None else len(np.unique(clusters))
    num_degrees, t = num_clusters - 1, mean / error
    scale = (8 * num_degrees + 1) / (8 * num_degrees + 3)
    z = math.copysign(scale * math.sqrt(num_degrees * math.log1p(t * t / num_degrees)), t)
    return NormalDist().cdf(-z)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that rejecting those below a level errs at all at most so often, in that order.

    Holm 1979, Scandinavian Journal of Statistics 6, 65: step-down Bonferroni. It holds however the tests
    depend on each other, as slices do that share rows.
    """
    order = sorted(range(len(p_values)), key=lambda place: (p_values[place], place))
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def paired_share_change(num_both: int, *, num_gained: int, num_lost: int, num_neither: int) -> Estimate:
    """Change of a share over the same examples, with Newcombe's interval for paired proportions.

    Newcombe 1998, Statistics in Medicine 17, 2635, method 10: Wilson's limits of both shares, squared and
    added, with their correlation. Holds its estimate, never leaves [-1, 1], and has width at no change too.
    """
    num_pairs = num_both + num_gained + num_lost + num_neither
    after = wilson_interval(num_both + num_gained, num_trials=num_pairs)
    before = wilson_interval(num_both + num_lost, num_trials=num_pairs)
    phi = _phi(num_both, num_gained=num_gained, num_lost=num_lost, num_neither=num_neither)
    change = (num_gained - num_lost) / num_pairs
    below = _distance(after.value - after.low, before.high - before.value, phi=phi)
    above = _distance(after.high - after.value, before.value - before.low, phi=phi)
    return Estimate(
        value=change, low=max(-1.0, change - below), high=min(1.0, change + above), num_samples=num_pairs
    )


def _phi(num_both: int, *, num_gained: int, num_lost: int, num_neither: int) -> float:
    """Correlation of the two answers, with Newcombe's correction for continuity where it is positive."""
    rows = (num_both + num_gained, num_lost + num_neither, num_both + num_lost, num_gained + num_neither)
    product = math.prod(rows)
    if product == 0:
        return 0.0
    determinant: float = num_both * num_neither - num_gained * num_lost
    if determinant > 0:
        determinant = max(determinant - sum(rows[:2]) / 2, 0.0)
    return determinant / math.sqrt(product)


def _distance(one: float, other: float, *, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))
