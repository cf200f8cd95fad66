from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from intelligence.ranking import Candidate, RankingWeights, rank
from intelligence.statistics import wilson_interval
from registry.records import Estimate, EvaluationSummary, Ranking
from registry.states import CheckpointState
from registry.testing import START, make_checkpoint

NUM_EXAMPLES = 100


def candidate(
    name: str, *, loss: float | None = 1.0, num_correct: int = 50, state: str = "accepted", **changes
) -> Candidate:
    estimate = None if loss is None else Estimate(value=loss, low=loss, high=loss, num_samples=NUM_EXAMPLES)
    summary = EvaluationSummary(
        num_examples=NUM_EXAMPLES,
        num_unknown=0,
        loss=estimate,
        accuracy=wilson_interval(num_correct, num_trials=NUM_EXAMPLES),
        accuracy_by_difficulty={},
        mean_confidence=None,
    )
    return make_checkpoint(id=name, state=CheckpointState(state), **changes), summary


def ranked(
    *candidates: Candidate,
    served: str | None = None,
    weights: RankingWeights | None = None,
    at_least: int = 1,
) -> Ranking:
    return rank(
        candidates,
        weights=weights or RankingWeights(),
        min_checkpoints=at_least,
        served_checkpoint_id=served,
        suite_id="suite-1",
        ranking_id="rank-1",
        now=START,
    )


def order(ranking: Ranking) -> list[str]:
    return [entry.checkpoint_id for entry in ranking.entries]


scores = st.lists(st.tuples(st.floats(0, 20), st.integers(0, NUM_EXAMPLES)), min_size=1, max_size=12)


def test_the_score_is_the_sum_of_its_visible_terms() -> None:
    (entry,) = ranked(candidate("a", loss=1.0, num_correct=80)).entries
    assert entry.terms == {"loss": pytest.approx(0.25), "accuracy": pytest.approx(0.4)}
    assert entry.score == pytest.approx(0.65)


def test_the_speed_term_is_left_out_and_the_weights_say_so() -> None:
    assert ranked(candidate("a")).weights == {"loss": 0.5, "accuracy": 0.5}
    skewed = RankingWeights(loss=0.6, accuracy=0.2, speed=0.9)
    assert ranked(candidate("a"), weights=skewed).weights == {
        "loss": pytest.approx(0.75),
        "accuracy": pytest.approx(0.25),
    }


@pytest.mark.parametrize(
    "weights", [{"loss": 0, "accuracy": 0}, {"loss": -0.1}, {"speed": float("nan")}, {"typo": 1.0}]
)
def test_weights_that_cannot_rank_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RankingWeights.model_validate(weights)


@pytest.mark.parametrize("state", [state for state in CheckpointState if state != "accepted"])
def test_only_accepted_checkpoints_are_ranked(state: CheckpointState) -> None:
    ranking = ranked(candidate("good"), candidate("other", num_correct=100, state=state))
    assert order(ranking) == ["good"]
    assert ranking.num_eligible == 1


def test_a_checkpoint_without_a_known_loss_is_not_ranked() -> None:
    assert order(ranked(candidate("good"), candidate("unknown", loss=None, num_correct=100))) == ["good"]


def test_fewer_than_three_are_not_ranked_and_the_note_says_why() -> None:
    pair = [candidate("a"), candidate("b")]
    ranking = rank(
        pair,
        weights=RankingWeights(),
        served_checkpoint_id=None,
        suite_id="suite-1",
        ranking_id="rank-1",
        now=START,
    )
    assert ranking.entries == ()
    assert ranking.num_eligible == 2
    assert "2 accepted" in ranking.note
    assert "3 are needed" in ranking.note


def test_a_full_ranking_has_no_note_and_counts_places_from_one() -> None:
    ranking = ranked(
        *(candidate(name, num_correct=n) for name, n in (("a", 1), ("b", 2), ("c", 3))), at_least=3
    )
    assert [(entry.rank, entry.checkpoint_id) for entry in ranking.entries] == [(1, "c"), (2, "b"), (3, "a")]
    assert ranking.note == ""


def test_equals_go_to_the_served_then_the_older_then_the_lower_step_then_the_smaller_id() -> None:
    later = START + timedelta(seconds=1)
    ranking = ranked(
        candidate("served", created_at=later, step=9),
        candidate("b", created_at=START, step=5),
        candidate("a", created_at=START, step=5),
        candidate("z", created_at=START, step=1),
        candidate("late", created_at=later, step=1),
        served="served",
    )
    assert order(ranking) == ["served", "z", "a", "b", "late"]


def test_step_900_comes_before_step_1000() -> None:
    pair = [candidate("checkpoint-1000", step=1000), candidate("checkpoint-900", step=900)]
    assert order(ranked(*pair)) == ["checkpoint-900", "checkpoint-1000"]


def test_a_better_checkpoint_passes_the_served_one() -> None:
    pair = [candidate("served", num_correct=50), candidate("better", num_correct=51)]
    assert order(ranked(*pair, served="served")) == ["better", "served"]


@given(scores, st.randoms())
def test_the_order_of_candidates_does_not_matter(values: list[tuple[float, int]], random) -> None:
    candidates = [candidate(f"c{n}", loss=loss, num_correct=k) for n, (loss, k) in enumerate(values)]
    assert ranked(*candidates) == ranked(*random.sample(candidates, len(candidates)))


@given(scores)
def test_scores_fall_with_the_rank_and_lie_between_0_and_1(values: list[tuple[float, int]]) -> None:
    candidates = [candidate(f"c{n}", loss=loss, num_correct=k) for n, (loss, k) in enumerate(values)]
    found = [entry.score for entry in ranked(*candidates).entries]
    assert found == sorted(found, reverse=True)
    assert all(0 <= score <= 1 for score in found)


@given(scores, st.floats(0.01, 5), st.data())
def test_a_lower_loss_never_costs_a_place(
    values: list[tuple[float, int]], gain: float, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    before = [candidate(f"c{n}", loss=loss, num_correct=k) for n, (loss, k) in enumerate(values)]
    loss, num_correct = values[place]
    after = [*before]
    after[place] = candidate(f"c{place}", loss=max(0.0, loss - gain), num_correct=num_correct)
    name = f"c{place}"
    assert order(ranked(*after)).index(name) <= order(ranked(*before)).index(name)
