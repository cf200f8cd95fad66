"""What the trainer's benchmark says of its material."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.trainer import padding_factor


def test_rows_of_one_length_are_not_padded() -> None:
    assert padding_factor(np.full(80, 7)) == 1.0


def test_eight_rows_cost_as_much_as_eight_of_the_longest() -> None:
    assert padding_factor(np.array([1, 1, 1, 1, 1, 1, 1, 8])) == pytest.approx(64 / 15)
