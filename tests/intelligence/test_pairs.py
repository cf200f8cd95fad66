import numpy as np
import pytest

from intelligence.pairs import measure, pair, why_incomparable, why_unmatched
from registry.messages import RegressionLimits
from registry.testing import make_evidence

LIMITS = RegressionLimits(num_resamples=400)


def test_rows_are_paired_by_their_id_and_not_by_their_place() -> None:
    mine = make_evidence("mine", losses=[1.0, 2.0, 3.0])
    other = make_evidence("other", losses=[10.0, 20.0, 30.0])
    reverse = other.changed(examples=other.examples[::-1])
    assert pair(mine, reverse).table[:, :2].tolist() == [[1, 10], [2, 20], [3, 30]]


def test_accuracy_may_be_paired_where_losses_are_unknown() -> None:
    mine, other = make_evidence("mine", losses=[1.0] * 40), make_evidence("other", losses=[1.0] * 40)
    broken = mine.changed(examples=tuple(one.changed(loss=None, problem="nan") for one in mine.examples))
    assert why_unmatched(broken, other) == ""
    assert "of the candidate is unknown (nan)" in why_incomparable(broken, other, min_pairs=30)


def test_rows_count_as_often_as_there_are_clusters_and_a_row_without_one_is_its_own() -> None:
    names = [f"text-{place % 4}" for place in range(20)] + [""] * 20
    mine = make_evidence("mine", losses=[1.0] * 40, cluster=names)
    other = make_evidence("other", losses=[1.0] * 40, cluster=names)
    assert pair(mine, other).num_clusters == 24
    assert why_incomparable(mine, other, min_pairs=30) == "40 rows in 24 clusters are too few; 30 are needed."
    assert why_incomparable(mine, other, min_pairs=24) == ""


def test_an_interval_of_clustered_rows_is_wider_by_what_they_share() -> None:
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(0, 0.3, 60), 10)
    losses = rng.gamma(4.0, 0.25, 600)
    names = [f"text-{place // 10}" for place in range(600)]
    apart, together = (
        measure(
            pair(
                make_evidence("mine", losses=np.maximum(losses + shared, 0), cluster=cluster),
                make_evidence("other", losses=losses),
            ),
            limits=LIMITS,
            rng=np.random.default_rng(1),
        )["loss_increase"]
        for cluster in ([""] * 600, names)
    )
    assert apart.value == together.value
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert together.num_samples == apart.num_samples == 600


@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_pairs_of_no_difference_have_none(loss: float) -> None:
    one = make_evidence("one", losses=[loss] * 40)
    measured = measure(pair(one, one), limits=LIMITS, rng=np.random.default_rng(0))
    assert (measured["loss_increase"].low, measured["loss_increase"].high) == (0, 0)
