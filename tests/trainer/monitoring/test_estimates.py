"""Intervals over few sequences hold the truth about as often as they claim."""

from __future__ import annotations

import numpy as np
import pytest

from registry.values import Estimate
from trainer.monitoring.estimates import difference, ratio, share


def test_the_interval_of_a_ratio_holds_the_truth_in_about_95_percent_of_draws() -> None:
    random, inside = np.random.default_rng(3), 0
    for _ in range(1000):
        counts = random.integers(1, 30, 64).astype(np.float64)
        level = random.normal(2.0, 0.5, 64)
        found = ratio(level * counts, counts=counts)
        inside += found.low <= 2.0 <= found.high
    assert 0.92 <= inside / 1000 <= 0.98


def test_all_right_is_no_certainty() -> None:
    found = share(np.array([3.0] * 20), counts=np.array([3.0] * 20))
    assert (found.value, found.high, found.num_samples) == (1.0, 1.0, 20)
    assert found.low == pytest.approx(0.839, abs=1e-3)


def test_a_difference_is_less_certain_than_either_side() -> None:
    one = Estimate(value=2.0, low=1.7, high=2.3, num_samples=64)
    other = Estimate(value=1.5, low=1.1, high=1.9, num_samples=60)
    found = difference(one, other)
    assert (found.value, found.num_samples) == (0.5, 60)
    assert found.high - found.value == pytest.approx(0.5)
