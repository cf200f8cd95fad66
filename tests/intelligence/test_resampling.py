import numpy as np
import pytest

from intelligence import resampling
from intelligence.errors import InvalidSample
from intelligence.resampling import resampled_means


def test_means_of_samples_scatter_about_the_mean_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(3, 2, size=(400, 1))
    means = resampled_means(table, num_resamples=4000, rng=rng)
    assert means.shape == (4000, 1)
    assert means.mean() == pytest.approx(table.mean(), abs=0.01)
    assert means.std() == pytest.approx(table.std() / np.sqrt(400), rel=0.05)


def test_a_row_is_drawn_whole() -> None:
    column = np.random.default_rng(1).normal(size=50)
    means = resampled_means(
        np.stack([column, -column], axis=1), num_resamples=100, rng=np.random.default_rng(2)
    )
    assert np.allclose(means[:, 0], -means[:, 1])


def test_blocks_of_memory_change_nothing_but_the_draws_order(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.arange(12, dtype=np.float64)[:, None]
    whole = resampled_means(table, num_resamples=9, rng=np.random.default_rng(3))
    monkeypatch.setattr(resampling, "MAX_DRAWN_ROWS", 24)
    assert np.array_equal(resampled_means(table, num_resamples=9, rng=np.random.default_rng(3)), whole)


@pytest.mark.parametrize("table", [np.zeros((1, 2)), np.zeros(4), np.array([[0.0], [np.nan]])])
def test_what_cannot_be_resampled_is_refused(table: np.ndarray) -> None:
    with pytest.raises(InvalidSample):
        resampled_means(table, num_resamples=10, rng=np.random.default_rng(0))
