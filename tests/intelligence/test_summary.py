import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from intelligence.errors import InvalidSample
from intelligence.statistics import wilson_interval
from intelligence.summary import is_known, summarise
from registry.records import ExampleResult
from registry.testing import make_example


@st.composite
def examples(draw: st.DrawFn) -> list[ExampleResult]:
    rows = draw(st.lists(st.tuples(st.booleans(), st.floats(0, 50), st.sampled_from("abc")), min_size=2))
    return [
        make_example(row_id=f"row-{place}", is_correct=is_correct, loss=loss, difficulty=difficulty)
        for place, (is_correct, loss, difficulty) in enumerate(rows)
    ]


def broken(row_id: str = "broken") -> ExampleResult:
    return make_example(row_id=row_id, loss=None, problem="the loss is nan")


def test_means_come_with_their_number_and_interval() -> None:
    summary = summarise([make_example(loss=1.0), make_example(loss=3.0, is_correct=False)])
    assert summary.loss is not None
    assert (summary.loss.value, summary.loss.num_samples) == (2.0, 2)
    assert summary.accuracy == wilson_interval(1, num_trials=2)
    assert summary.num_unknown == 0
    assert summary.mean_confidence == pytest.approx(0.9)


def test_a_nan_or_infinite_loss_cannot_enter_a_record() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            make_example(loss=bad)


def test_one_unknown_example_makes_the_mean_loss_unknown() -> None:
    summary = summarise([*(make_example(row_id=f"{n}") for n in range(99)), broken()])
    assert summary.loss is None
    assert (summary.num_examples, summary.num_unknown) == (100, 1)


def test_an_unknown_example_counts_as_wrong_even_if_its_answer_matched() -> None:
    summary = summarise([make_example(), broken()])
    assert summary.accuracy == wilson_interval(1, num_trials=2)


@pytest.mark.parametrize("changes", [{"loss": None}, {"problem": "logits not finite"}, {"loss": -0.5}])
def test_an_example_is_known_only_with_a_possible_loss_and_no_problem(changes: dict) -> None:
    assert is_known(make_example())
    assert is_known(make_example(loss=0.0))
    assert not is_known(make_example(**changes))


def test_each_difficulty_has_its_own_wilson_interval() -> None:
    easy = [make_example(difficulty="easy") for _ in range(50)]
    hard = [make_example(difficulty="hard", is_correct=place < 10) for place in range(50)]
    summary = summarise([*hard, *easy])
    assert summary.accuracy_by_difficulty == {
        "easy": wilson_interval(50, num_trials=50),
        "hard": wilson_interval(10, num_trials=50),
    }


def test_confidence_is_unknown_if_one_example_has_none() -> None:
    assert summarise([make_example(), make_example(confidence=None)]).mean_confidence is None


def test_a_single_example_has_no_mean_loss_that_could_carry_an_interval() -> None:
    summary = summarise([make_example()])
    assert summary.loss is None
    assert summary.accuracy.low < 0.3


def test_no_examples_have_no_summary() -> None:
    with pytest.raises(InvalidSample, match="without examples"):
        summarise([])


@given(examples(), st.randoms())
def test_the_order_of_examples_does_not_matter(rows: list[ExampleResult], random) -> None:
    mine, other = summarise(rows), summarise(random.sample(rows, len(rows)))
    assert mine.accuracy_by_difficulty == other.accuracy_by_difficulty
    assert mine.loss is not None
    assert other.loss is not None
    assert other.loss.value == pytest.approx(mine.loss.value)


@given(examples(), st.data())
def test_breaking_an_example_never_makes_a_summary_look_better(
    rows: list[ExampleResult], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    worse = summarise([*rows[:place], broken(rows[place].row_id), *rows[place + 1 :]])
    assert worse.loss is None
    assert worse.accuracy.value <= summarise(rows).accuracy.value
