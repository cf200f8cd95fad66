from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from intelligence.ranking import Candidate, rank
from intelligence.scores import RankingWeights
from intelligence.summary import summarise
from registry.records import Ranking
from registry.states import CheckpointState, EvaluationState
from registry.testing import SHA, START, make_checkpoint, make_evaluation, make_example

NUM_EXAMPLES = 100


def candidate(
    name: str,
    *,
    loss: float | None = 1.0,
    num_correct: int = 50,
    first_correct: int = 0,
    state: str = "accepted",
    first_row: int = 0,
    spread: float = 0.0,
    **changes: Any,
) -> Candidate:
    draw = np.random.default_rng(0).normal(0, spread, NUM_EXAMPLES)
    examples = tuple(
        make_example(
            row_id=f"row-{first_row + place}",
            loss=None if loss is None else max(0.0, loss + draw[place]),
            is_correct=first_correct <= place < first_correct + num_correct,
        )
        for place in range(NUM_EXAMPLES)
    )
    evaluation = make_evaluation(
        id=f"eval-{name}",
        checkpoint_id=name,
        state=EvaluationState.ANSWERED,
        summary=summarise(examples),
    )
    return Candidate(make_checkpoint(id=name, state=CheckpointState(state), **changes), evaluation, examples)


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
        num_resamples=300,
        served_checkpoint_id=served,
        suite_id="suite-1",
        ranking_id="rank-1",
        evidence_sha256=SHA,
        now=START,
        rng=np.random.default_rng(0),
    )


def order(ranking: Ranking) -> list[str]:
    return [entry.checkpoint_id for entry in ranking.entries]


scores = st.lists(st.tuples(st.floats(0, 20), st.integers(0, NUM_EXAMPLES)), min_size=1, max_size=6)


def test_the_score_is_the_sum_of_its_visible_terms() -> None:
    (entry,) = ranked(candidate("a", loss=1.0, num_correct=80)).entries
    assert entry.terms == {"loss": pytest.approx(0.25), "accuracy": pytest.approx(0.4)}
    assert entry.score.value == pytest.approx(0.65)
    assert entry.score.low < 0.65 < entry.score.high
    assert entry.score.num_samples == NUM_EXAMPLES


def test_an_entry_names_the_evaluation_that_it_stands_on() -> None:
    (entry,) = ranked(candidate("a")).entries
    assert entry.evaluation_id == "eval-a"


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


def test_a_checkpoint_that_answered_other_rows_is_not_ranked() -> None:
    others = candidate("other", num_correct=100, first_row=1)
    assert order(ranked(candidate("a"), candidate("b"), others)) == ["a", "b"]


def test_nothing_is_ranked_where_there_is_nothing() -> None:
    ranking = ranked(at_least=0)
    assert ranking.entries == ()
    assert "0 accepted" in ranking.note


def test_fewer_than_three_are_not_ranked_and_the_note_says_why() -> None:
    ranking = ranked(candidate("a"), candidate("b"), at_least=3)
    assert ranking.entries == ()
    assert ranking.num_eligible == 2
    assert "2 accepted" in ranking.note
    assert "3 are needed" in ranking.note


def test_a_full_ranking_has_no_note_and_counts_places_from_one() -> None:
    three = (candidate(name, num_correct=n) for name, n in (("a", 10), ("b", 40), ("c", 90)))
    ranking = ranked(*three, at_least=3)
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


def test_a_clearly_better_checkpoint_passes_the_served_one() -> None:
    pair = [candidate("served", num_correct=50), candidate("better", num_correct=70)]
    assert order(ranked(*pair, served="served")) == ["better", "served"]


def test_within_one_standard_error_the_served_one_stays_first() -> None:
    pair = [candidate("served", num_correct=50), candidate("better", num_correct=51, first_correct=20)]
    ranking = ranked(*pair, served="served")
    assert order(ranking) == ["served", "better"]
    assert [entry.is_tied_with_best for entry in ranking.entries] == [True, True]


def test_within_one_standard_error_the_older_one_comes_first_where_neither_is_served() -> None:
    tomorrow = START + timedelta(days=1)
    newer = candidate("newer", num_correct=51, first_correct=20, created_at=tomorrow)
    assert order(ranked(candidate("older", num_correct=50), newer)) == ["older", "newer"]


def test_only_the_first_place_goes_by_the_tie_rule() -> None:
    ranking = ranked(
        candidate("best", num_correct=90),
        candidate("second", num_correct=51, created_at=START + timedelta(days=1)),
        candidate("third", num_correct=50),
    )
    assert order(ranking) == ["best", "second", "third"]
    assert [entry.is_tied_with_best for entry in ranking.entries] == [True, False, False]


def test_the_lead_over_the_next_one_is_paired() -> None:
    # Losses that vary much from row to row, but are the same 0.1 apart on each: no doubt is left.
    pair = candidate("one", loss=5.0, spread=1.0), candidate("two", loss=5.1, spread=1.0)
    first, last = ranked(*pair).entries
    assert first.lead is not None
    assert last.lead is None
    assert 0 < first.lead.difference.low <= first.lead.difference.value
    assert first.lead.p_value < 0.01
    assert first.score.low < last.score.high  # apart, their intervals overlap


def test_equal_answers_have_no_lead() -> None:
    first, _ = ranked(candidate("a"), candidate("b")).entries
    assert first.lead is not None
    assert first.lead.difference.value == 0
    assert first.lead.standard_error == 0
    assert first.lead.p_value == 1


def test_the_front_holds_what_no_other_betters_in_both() -> None:
    ranking = ranked(
        candidate("accurate", loss=2.0, num_correct=90),
        candidate("sure", loss=0.5, num_correct=60),
        candidate("neither", loss=2.0, num_correct=60),
    )
    on_front = {entry.checkpoint_id: entry.is_on_front for entry in ranking.entries}
    assert on_front == {"accurate": True, "sure": True, "neither": False}


@given(scores, st.randoms())
def test_the_order_of_candidates_does_not_matter(values: list[tuple[float, int]], random) -> None:
    candidates = [candidate(f"c{n}", loss=loss, num_correct=k) for n, (loss, k) in enumerate(values)]
    assert ranked(*candidates) == ranked(*random.sample(candidates, len(candidates)))


@given(scores)
def test_scores_fall_with_the_rank_but_for_the_first_and_lie_between_0_and_1(
    values: list[tuple[float, int]],
) -> None:
    candidates = [candidate(f"c{n}", loss=loss, num_correct=k) for n, (loss, k) in enumerate(values)]
    entries = ranked(*candidates).entries
    found = [entry.score.value for entry in entries]
    assert found[1:] == sorted(found[1:], reverse=True)
    assert entries[0].is_tied_with_best
    assert all(0 <= score <= 1 for score in found)


@given(scores)
def test_every_interval_contains_its_estimate(values: list[tuple[float, int]]) -> None:
    candidates = [candidate(f"c{n}", loss=loss, num_correct=k) for n, (loss, k) in enumerate(values)]
    for entry in ranked(*candidates).entries:
        estimates = [entry.score, *([entry.lead.difference] if entry.lead else [])]
        assert all(one.low <= one.value <= one.high for one in estimates)


def clustered(one: Candidate, *, size: int) -> Candidate:
    examples = tuple(row.changed(cluster=f"text-{place // size}") for place, row in enumerate(one.examples))
    return replace(one, examples=examples)


def test_rows_that_share_a_text_make_a_lead_less_sure() -> None:
    pair = candidate("a", num_correct=60), candidate("b", num_correct=40)
    plain = ranked(*pair).entries[0].lead
    shared = ranked(*(clustered(one, size=20) for one in pair)).entries[0].lead
    assert plain is not None
    assert shared is not None
    assert shared.difference.value == pytest.approx(plain.difference.value)
    assert shared.standard_error > 1.5 * plain.standard_error


def test_a_suite_of_one_cluster_ranks_nothing_and_says_why() -> None:
    found = ranked(*(clustered(candidate(name), size=NUM_EXAMPLES) for name in "abc"))
    assert (found.entries, found.note[:38]) == ((), "All rows of the suite are of one clust")
