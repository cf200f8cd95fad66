"""Calibration errors are what hand and simulation say, and refuse what is no probability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intelligence.errors import InvalidSample
from intelligence.reliability import EDGES, bins, measure
from intelligence.resampling import Floats
from registry.calibrations import Reliability

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60)


def measured(rows: list[tuple[float, bool]], *, seed: int = 0) -> Reliability:
    confidence, correct = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return measure(confidence, correct=correct, num_resamples=200, rng=np.random.default_rng(seed))


def test_the_error_is_the_mean_distance_of_the_bins_weighted_by_their_sizes() -> None:
    rows = [(0.95, True)] * 6 + [(0.95, False)] * 2 + [(0.55, False)] * 2
    found = measured(rows)
    # By hand: 8 of 10 rows are 0.95 sure and 6 of 8 right; 2 of 10 are 0.55 sure and none is.
    assert found.ece.value == pytest.approx(0.8 * 0.20 + 0.2 * 0.55)
    assert found.overconfidence.value == pytest.approx(found.ece.value)
    assert found.underconfidence.value == 0
    assert found.confidence_gap.value == pytest.approx(0.87 - 0.6)
    assert found.brier.value == pytest.approx((6 * 0.0025 + 2 * 0.9025 + 2 * 0.3025) / 10)


def test_a_bin_holds_its_lower_edge_and_the_last_one_both() -> None:
    counts = [one.num_examples for one in bins(np.array([*EDGES, 0.4999]), correct=np.zeros(8))]
    assert counts == [2, 1, 1, 1, 1, 2]


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_errors_lie_between_nothing_and_one_and_the_parts_add_up(rows: list[tuple[float, bool]]) -> None:
    found = measured(rows)
    for one in (found.ece, found.debiased_ece, found.adaptive_ece, found.brier):
        assert 0 <= one.low <= one.value <= one.high <= 1
        assert one.num_samples == len(rows)
    parts = found.reliability.value - found.resolution.value + found.uncertainty.value
    assert found.brier.value == pytest.approx(parts + found.within_bins.value, abs=1e-9)
    assert found.ece.value == pytest.approx(found.overconfidence.value + found.underconfidence.value)
    assert abs(found.confidence_gap.value) <= found.ece.value + 1e-9
    assert found.debiased_ece.value <= found.ece.value + 1e-9


@settings(max_examples=40, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[float, bool]], shuffler: object) -> None:
    shuffled = list(rows)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = measured(rows), measured(shuffled)
    for name in ("ece", "debiased_ece", "adaptive_ece", "brier", "confidence_gap"):
        assert getattr(one, name).value == pytest.approx(getattr(other, name).value, abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [
        ([0.5, float("nan")], [0, 1]),
        ([0.5, float("inf")], [0, 1]),
        ([0.5, 1.1], [0, 1]),
        ([0.5, -0.1], [0, 1]),
        ([0.5, 0.5], [0, 0.5]),
        ([0.5, 0.5], [0, float("nan")]),
        ([0.5], [1]),
        ([], []),
        ([0.5, 0.5], [1]),
    ],
)
def test_what_is_no_probability_is_refused(confidence: list[float], correct: list[float]) -> None:
    with pytest.raises(InvalidSample):
        measure(
            np.array(confidence, dtype=np.float64),
            correct=np.array(correct, dtype=np.float64),
            num_resamples=200,
            rng=np.random.default_rng(0),
        )


def coverage(truth: Floats, told: Floats, *, true_error: float) -> float:
    num_held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(told), 400)
        correct = (rng.random(400) < truth[drawn]).astype(np.float64)
        found = measure(told[drawn], correct=correct, num_resamples=200, rng=rng)
        num_held += found.ece.low <= true_error <= found.ece.high
    return num_held / 100


def test_the_interval_holds_the_true_error_about_as_often_as_it_says() -> None:
    told = np.linspace(0.5, 1.0, 5001)
    assert coverage(told, told, true_error=0.0) >= 0.85
    assert coverage(told - 0.15, told, true_error=0.15) >= 0.9
