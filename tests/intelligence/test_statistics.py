import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intelligence.errors import InvalidSample
from intelligence.statistics import (
    holm,
    mcnemar_p,
    mean_estimate,
    p_above_zero,
    paired_bootstrap,
    paired_share_change,
    redrawn_means,
    standard_error,
    wilson_interval,
)

proportions = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
losses = st.floats(0, 1e6, allow_nan=False)


def first_column(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def bootstrap(table: np.ndarray, *, seed: int = 0, num_resamples: int = 1000):
    return paired_bootstrap(
        table,
        statistics={"mean": first_column},
        num_resamples=num_resamples,
        rng=np.random.default_rng(seed),
    )["mean"]


# Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3.
@pytest.mark.parametrize(
    ("num_successes", "num_trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_is_the_published_one(
    num_successes: int, num_trials: int, low: float, high: float
) -> None:
    estimate = wilson_interval(num_successes, num_trials=num_trials)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(proportions)
def test_a_wilson_interval_holds_its_estimate_and_stays_a_share(counts: tuple[int, int]) -> None:
    estimate = wilson_interval(counts[0], num_trials=counts[1])
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high > estimate.low
    assert estimate.num_samples == counts[1]


@given(proportions)
def test_successes_and_failures_have_mirrored_intervals(counts: tuple[int, int]) -> None:
    num_successes, num_trials = counts
    mine = wilson_interval(num_successes, num_trials=num_trials)
    other = wilson_interval(num_trials - num_successes, num_trials=num_trials)
    assert mine.low == pytest.approx(1 - other.high, abs=1e-12)


@pytest.mark.parametrize(("num_successes", "num_trials"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_proportion_is_refused(num_successes: int, num_trials: int) -> None:
    with pytest.raises(InvalidSample, match=f"{num_successes} successes of {num_trials}"):
        wilson_interval(num_successes, num_trials=num_trials)


# Quantiles of Student's t from tables: 4.303 for 2, 2.228 for 10, 1.984 for 100 degrees of freedom.
@pytest.mark.parametrize(("num_values", "quantile"), [(3, 4.3027), (11, 2.2281), (101, 1.9840)])
def test_a_mean_has_students_interval(num_values: int, quantile: float) -> None:
    values = [float(number) for number in range(num_values)]
    estimate = mean_estimate(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(num_values)
    assert estimate.value == pytest.approx(np.mean(values))
    assert (estimate.high - estimate.value) / error == pytest.approx(quantile, abs=3e-4)


@given(st.lists(losses, min_size=2, max_size=60), st.randoms())
def test_the_order_of_values_does_not_matter_to_their_mean(values: list[float], random) -> None:
    shuffled = random.sample(values, len(values))
    mine, other = mean_estimate(values), mean_estimate(shuffled)
    assert mine.low <= mine.value <= mine.high
    assert other.value == pytest.approx(mine.value, rel=1e-9, abs=1e-9)


def test_the_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    estimates = [mean_estimate(list(rng.normal(3.0, 1.0, size=6))) for _ in range(1500)]
    share = np.mean([estimate.low <= 3.0 <= estimate.high for estimate in estimates])
    assert 0.93 < share < 0.97


@pytest.mark.parametrize("values", [[], [1.0]])
def test_a_spread_that_is_not_known_is_not_told_as_zero(values: list[float]) -> None:
    with pytest.raises(InvalidSample, match="have no interval"):
        mean_estimate(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_mean_of_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InvalidSample, match="not all finite"):
        mean_estimate([1.0, bad])


def test_the_bootstrap_agrees_with_theory_on_normal_values() -> None:
    values = np.random.default_rng(2).normal(5.0, 2.0, size=(400, 1))
    estimate = bootstrap(values, num_resamples=4000)
    half = NormalDist().inv_cdf(0.975) * float(values.std(ddof=1)) / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.06)
    assert estimate.num_samples == 400


def test_pairs_are_drawn_whole() -> None:
    one = np.random.default_rng(3).exponential(1.0, size=200)
    table = np.stack([one, one + 0.25], axis=1)
    drawn = paired_bootstrap(
        table,
        statistics={"difference": lambda means: means[..., 1] - means[..., 0]},
        num_resamples=500,
        rng=np.random.default_rng(0),
    )["difference"]
    assert (drawn.low, drawn.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_the_same_seed_draws_the_same_interval() -> None:
    table = np.random.default_rng(4).normal(size=(50, 1))
    assert bootstrap(table, seed=7) == bootstrap(table, seed=7)
    assert bootstrap(table, seed=7) != bootstrap(table, seed=8)


class CountingGenerator(np.random.Generator):
    """Remembers how many rows were drawn at once."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))
        self.sizes: list[tuple[int, int]] = []

    def integers(self, low, high, *, size):
        self.sizes.append(size)
        return super().integers(low, high, size=size)


def test_every_resample_is_drawn_also_where_memory_bounds_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intelligence.resampling.MAX_DRAWN_ROWS", 730)
    rng = CountingGenerator()
    table = np.random.default_rng(5).normal(size=(100, 1))
    paired_bootstrap(table, statistics={"mean": first_column}, num_resamples=1000, rng=rng)
    assert set(rng.sizes) == {(7, 100), (6, 100)}
    assert sum(size[0] for size in rng.sizes) == 1000


@pytest.mark.parametrize(
    "table", [np.zeros((1, 2)), np.zeros((0, 2)), np.zeros(5), np.array([[1.0], [math.nan]])]
)
def test_what_cannot_be_resampled_is_refused(table: np.ndarray) -> None:
    with pytest.raises(InvalidSample, match="cannot be resampled"):
        bootstrap(table)


# 2 * P(X <= lost) for X ~ B(gained + lost, 1/2), by hand.
@pytest.mark.parametrize(
    ("num_gained", "num_lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (8, 2, 2 * 56 / 1024), (1, 9, 2 * 11 / 1024), (1, 0, 1.0)],
)
def test_mcnemars_p_is_the_exact_binomial_one(num_gained: int, num_lost: int, p: float) -> None:
    assert mcnemar_p(num_gained, num_lost) == pytest.approx(p)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemars_p_is_a_probability_and_symmetric(num_gained: int, num_lost: int) -> None:
    p = mcnemar_p(num_gained, num_lost)
    assert 0 < p <= 1
    assert p == mcnemar_p(num_lost, num_gained)


@given(st.integers(1, 200), st.integers(0, 100))
def test_a_more_lopsided_change_is_never_less_significant(num_changed: int, num_lost: int) -> None:
    num_lost = min(num_lost, num_changed // 2)
    fewer = max(0, num_lost - 1)
    assert mcnemar_p(num_changed - fewer, fewer) <= mcnemar_p(num_changed - num_lost, num_lost)


def test_thousands_of_changed_pairs_do_not_overflow() -> None:
    assert mcnemar_p(3000, 1000) < 1e-200
    assert mcnemar_p(2000, 2010) > 0.8


def test_a_negative_number_of_pairs_is_refused() -> None:
    with pytest.raises(InvalidSample):
        mcnemar_p(-1, 3)


# Newcombe 1998, Statistics in Medicine 17, 2635: coverage near 95 % also where few pairs change.
@pytest.mark.parametrize("num_pairs", [30, 200])
def test_a_paired_change_is_covered_about_as_often_as_it_says(num_pairs: int) -> None:
    rng, shares = np.random.default_rng(num_pairs), (0.6, 0.05, 0.15, 0.2)
    counts = rng.multinomial(num_pairs, shares, size=1500)
    estimates = [
        paired_share_change(int(both), num_gained=int(gained), num_lost=int(lost), num_neither=int(neither))
        for both, gained, lost, neither in counts
    ]
    covered = np.mean([one.low <= shares[1] - shares[2] <= one.high for one in estimates])
    assert 0.93 < covered < 0.985


@given(st.tuples(*[st.integers(0, 50)] * 4).filter(lambda counts: sum(counts) > 0))
def test_a_paired_change_holds_its_estimate_has_width_and_mirrors(counts: tuple[int, int, int, int]) -> None:
    both, gained, lost, neither = counts
    one = paired_share_change(both, num_gained=gained, num_lost=lost, num_neither=neither)
    other = paired_share_change(both, num_gained=lost, num_lost=gained, num_neither=neither)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert one.low < one.high
    assert one.low == pytest.approx(-other.high, abs=1e-12)


# By hand: sorted 0.01, 0.02, 0.03 times 3, 2, 1, and never below the one before.
def test_holm_adjusts_step_by_step() -> None:
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_lowers_a_p_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(1 >= after >= before for before, after in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    assert [adjusted[place] for place in order] == sorted(adjusted)


# Tails of Student's t from tables: 1.812 for 10, 1.660 for 100 degrees of freedom leave 5 %.
@pytest.mark.parametrize(("num_values", "t"), [(11, 1.8125), (101, 1.6602)])
def test_p_above_zero_is_the_tail_of_students_t(num_values: int, t: float) -> None:
    values = np.linspace(-1, 1, num_values)
    shift = t * float(values.std(ddof=1)) / math.sqrt(num_values)
    assert p_above_zero(values + shift) == pytest.approx(0.05, rel=0.01)
    assert p_above_zero(values - shift) == pytest.approx(0.95, rel=0.01)
    assert p_above_zero(values) == pytest.approx(0.5)


def test_values_that_do_not_differ_decide_by_their_sign() -> None:
    assert [p_above_zero(np.full(5, value)) for value in (0.1, 0.0, -0.1)] == [0.0, 1.0, 1.0]


def test_rows_repeated_within_clusters_add_no_certainty() -> None:
    values = np.random.default_rng(6).normal(0.2, 1.0, size=50)
    clusters = np.repeat(np.arange(50), 8)
    repeated = np.repeat(values, 8)
    assert standard_error(repeated, clusters=clusters) == pytest.approx(standard_error(values))
    assert standard_error(repeated) < 0.4 * standard_error(values)
    assert p_above_zero(repeated, clusters=clusters) == pytest.approx(p_above_zero(values))
    apart, together = (
        paired_bootstrap(
            repeated[:, None],
            statistics={"mean": first_column},
            num_resamples=1000,
            rng=np.random.default_rng(0),
            clusters=numbers,
        )["mean"]
        for numbers in (None, clusters)
    )
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
    assert together.num_samples == 400


def test_one_cluster_alone_has_no_error() -> None:
    with pytest.raises(InvalidSample):
        standard_error(np.ones(5), clusters=np.zeros(5, dtype=np.int64))
    with pytest.raises(InvalidSample, match="one cluster"):
        paired_bootstrap(
            np.ones((5, 1)),
            statistics={"mean": first_column},
            num_resamples=10,
            rng=np.random.default_rng(0),
            clusters=np.zeros(5, dtype=np.int64),
        )


def test_rows_of_one_cluster_are_drawn_together() -> None:
    table = np.repeat(np.random.default_rng(0).normal(size=(40, 1)), 10, axis=0)
    clusters = np.repeat(np.arange(40), 10)
    how = {"num_resamples": 2000, "rng": np.random.default_rng(1)}
    alone = redrawn_means(table, clusters=None, **how).std()
    together = redrawn_means(table, clusters=clusters, **how).std()
    assert together / alone == pytest.approx(10**0.5, rel=0.1)
    with pytest.raises(InvalidSample, match="one cluster"):
        redrawn_means(table, clusters=np.zeros(400, dtype=np.int64), **how)
