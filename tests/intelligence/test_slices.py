import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intelligence.pairs import pair
from intelligence.slices import judge_slices
from registry.messages import RegressionLimits
from registry.states import Outcome
from registry.testing import make_evidence
from registry.verdicts import SliceVerdict

LIMITS = RegressionLimits(num_resamples=200)
NUM_TAGS = 20
NUM_ROWS = 1000


def judged(
    candidate: np.ndarray, baseline: np.ndarray, *, seed: int = 0, **columns
) -> dict[str, SliceVerdict]:
    pairs = pair(
        make_evidence("candidate", losses=candidate, **columns), make_evidence("baseline", losses=baseline)
    )
    slices, _ = judge_slices(pairs, limits=LIMITS, rng=np.random.default_rng(seed))
    return {f"{one.kind} {one.name}": one for one in slices}


def tags(num_rows: int = NUM_ROWS) -> list[tuple[str, ...]]:
    return [(f"tag-{place % NUM_TAGS:02d}",) for place in range(num_rows)]


def drawn(seed: int, *, num_rows: int = NUM_ROWS) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 0.5, size=num_rows)


def test_one_forgotten_tag_is_found_and_named_though_the_whole_is_within_its_limit() -> None:
    losses = drawn(0)
    is_forgotten = np.arange(NUM_ROWS) % NUM_TAGS == 3
    candidate = np.where(is_forgotten, losses * 2.5, losses)
    assert candidate.mean() / losses.mean() < 1.15
    found = judged(candidate, losses, tags=tags())
    regressed = [name for name, one in found.items() if one.outcome is Outcome.REGRESSED]
    assert regressed == ["tag tag-03"]
    assert found["tag tag-03"].loss_increase.value == pytest.approx(1.5)
    assert found["tag tag-03"].num_pairs == NUM_ROWS // NUM_TAGS


def test_of_twenty_noisy_slices_at_their_limit_hardly_one_is_called_regressed() -> None:
    num_alarms = 0
    for seed in range(60):
        losses, noise = drawn(seed), np.random.default_rng(seed + 100).normal(0, 0.5, NUM_ROWS)
        candidate = np.maximum(losses * 1.15 + noise, 0.0)
        found = judged(candidate, losses, tags=tags(), seed=seed)
        assert len(found) == NUM_TAGS
        num_alarms += any(one.outcome is Outcome.REGRESSED for one in found.values())
    # The worst case that the hypothesis allows: 2.5 % of 60 are expected; without Holm, 40 % and more.
    assert num_alarms <= 5


def test_a_difficulty_that_lost_its_accuracy_is_found_though_its_loss_is_the_same() -> None:
    losses, levels = drawn(1), ["easy" if place % 2 else "hard" for place in range(NUM_ROWS)]
    correct = [level == "easy" or place % 3 > 0 for place, level in enumerate(levels)]
    pairs = pair(
        make_evidence("candidate", losses=losses, correct=correct, difficulty=levels),
        make_evidence("baseline", losses=losses),
    )
    slices, num_small = judge_slices(pairs, limits=LIMITS, rng=np.random.default_rng(0))
    assert {one.name: one.outcome for one in slices} == {"easy": Outcome.PASS, "hard": Outcome.REGRESSED}
    assert num_small == 0


def test_a_slice_that_is_the_suite_is_left_out_and_one_of_few_rows_is_counted() -> None:
    losses = drawn(2, num_rows=100)
    rare = [("rare",) if place < 5 else () for place in range(100)]
    pairs = pair(make_evidence("one", losses=losses, tags=rare), make_evidence("other", losses=losses))
    assert judge_slices(pairs, limits=LIMITS, rng=np.random.default_rng(0)) == ((), 1)


def test_rows_of_one_cluster_are_no_independent_evidence_against_a_slice() -> None:
    losses, names = drawn(3, num_rows=200), ["a" if place < 100 else "b" for place in range(200)]
    clusters = [f"text-{place % 10}" for place in range(200)]
    assert judged(losses * 3, losses, tags=[(name,) for name in names], cluster=clusters) == {}


@given(st.integers(0, 50), st.randoms())
@settings(max_examples=15, deadline=None)
def test_the_order_of_rows_does_not_matter_and_intervals_hold_their_estimates(seed: int, random) -> None:
    losses = drawn(seed, num_rows=200)
    mine = make_evidence("mine", losses=losses * 1.1, tags=tags(200), cluster=["x", *[""] * 198, "x"])
    other = make_evidence("other", losses=losses)
    limits = LIMITS.changed(min_slice_pairs=5)
    shuffled = mine.changed(examples=tuple(random.sample(mine.examples, len(mine.examples))))
    found, again = (
        judge_slices(pair(side, other), limits=limits, rng=np.random.default_rng(seed))
        for side in (mine, shuffled)
    )
    assert found == again
    assert len(found[0]) == NUM_TAGS
    for one in found[0]:
        assert one.loss_increase.low <= one.loss_increase.value <= one.loss_increase.high
        assert one.accuracy_change.low <= one.accuracy_change.value <= one.accuracy_change.high
