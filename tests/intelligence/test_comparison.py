from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intelligence.comparison import compare
from intelligence.errors import InvalidSample
from intelligence.scores import RankingWeights
from registry.messages import Evidence
from registry.records import Comparison, ExampleResult
from registry.testing import make_example


def evidence(name: str, examples: tuple[ExampleResult, ...], *, suite: str = "suite-1") -> Evidence:
    return Evidence(checkpoint_id=name, evaluation_id=f"eval-{name}", suite_id=suite, examples=examples)


def examples(num_rows: int = 40, *, num_correct: int = 20, loss: float = 1.0, **changes: Any):
    return tuple(
        make_example(
            row_id=f"row-{n:03}",
            difficulty="easy" if n % 2 else "hard",
            tags=("late",) if n >= 30 else (),
            is_correct=n < num_correct,
            answer=f"{num_correct}",
            loss=loss + n / 10,
            **changes,
        )
        for n in range(num_rows)
    )


def compared(left: tuple[ExampleResult, ...], right: tuple[ExampleResult, ...], **how: Any) -> Comparison:
    return compare(
        evidence("left", left),
        evidence("right", right, **how),
        weights=RankingWeights(),
        num_resamples=300,
        rng=np.random.default_rng(0),
    )


def test_right_minus_left_with_the_interval_of_pairs() -> None:
    found = compared(examples(), examples(loss=0.9))
    assert found.loss.left - found.loss.right == pytest.approx(0.1)
    assert found.loss.difference.value == pytest.approx(-0.1)
    # The same 0.1 on each row: although losses run from 1 to 5, the difference is beyond doubt.
    assert found.loss.difference.high == pytest.approx(-0.1)
    assert found.loss.p_value is not None
    assert found.loss.p_value < 0.01
    assert found.num_pairs == 40


def test_gained_and_lost_rows_are_named_and_tested_by_mcnemar() -> None:
    found = compared(examples(num_correct=10), examples(num_correct=18))
    assert [flip.row_id for flip in found.gained] == [f"row-{n:03}" for n in range(10, 18)]
    assert found.lost == ()
    assert (found.gained[0].left_answer, found.gained[0].right_answer) == ("10", "18")
    assert found.accuracy.p_value == pytest.approx(2 / 2**8)


def test_slices_are_those_of_difficulty_and_of_tag() -> None:
    found = compared(examples(num_correct=30), examples(num_correct=40))
    slices = {(one.kind, one.name): one for one in found.slices}
    assert set(slices) == {("difficulty", "easy"), ("difficulty", "hard"), ("tag", "late")}
    late = slices["tag", "late"]
    assert late.num_examples == 10
    assert late.accuracy is not None
    assert (late.accuracy.left, late.accuracy.right, late.accuracy.p_value) == (0, 1, None)


def test_a_slice_of_one_row_bears_no_numbers() -> None:
    one, other = (
        tuple(row.changed(tags=("rare",)) if row.row_id == "row-005" else row for row in examples())
        for _ in range(2)
    )
    rare = next(one for one in compared(one, other).slices if one.name == "rare")
    assert (rare.loss, rare.accuracy, rare.num_examples) == (None, None, 1)


@pytest.mark.parametrize(
    ("right", "how", "said"),
    [
        (examples(39), {}, "39 rows were answered by both, 1 by one of them"),
        (examples(), {"suite": "suite-2"}, "suites differ"),
        (
            (*examples(39), make_example(row_id="row-039", loss=None)),
            {},
            "right has no known loss on 1 of 40",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    right: tuple[ExampleResult, ...], how: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidSample, match=said):
        compared(examples(), right, **how)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.booleans(), st.booleans()), min_size=2))
@settings(deadline=None)
def test_turning_the_sides_turns_every_sign(rows: list[tuple[float, float, bool, bool]]) -> None:
    left = tuple(make_example(row_id=f"{n}", loss=a, is_correct=x) for n, (a, _, x, _) in enumerate(rows))
    right = tuple(make_example(row_id=f"{n}", loss=b, is_correct=y) for n, (_, b, _, y) in enumerate(rows))
    one, other = compared(left, right), compared(right, left)
    for name in ("loss", "accuracy", "score"):
        forth, back = getattr(one, name).difference, getattr(other, name).difference
        assert forth.value == pytest.approx(-back.value)
        assert forth.low == pytest.approx(-back.high)
    assert [flip.row_id for flip in one.gained] == [flip.row_id for flip in other.lost]


def test_copies_of_a_row_in_one_cluster_make_nothing_surer() -> None:
    def copied(rows: tuple[ExampleResult, ...], *, cluster: bool) -> tuple[ExampleResult, ...]:
        return tuple(
            row.changed(row_id=f"{row.row_id}-{copy}", cluster=row.row_id if cluster else "")
            for row in rows
            for copy in range(9)
        )

    def width(*, cluster: bool) -> float:
        sides = (copied(examples(num_correct=count), cluster=cluster) for count in (30, 36))
        found = compared(*sides).accuracy
        return found.difference.high - found.difference.low

    once = compared(examples(num_correct=30), examples(num_correct=36)).accuracy.difference
    assert width(cluster=True) == pytest.approx(once.high - once.low, rel=0.15)
    assert width(cluster=False) < (once.high - once.low) / 2


def test_a_suite_of_one_cluster_cannot_be_compared() -> None:
    left, right = (
        tuple(row.changed(cluster="text") for row in examples(num_correct=count)) for count in (9, 12)
    )
    with pytest.raises(InvalidSample, match="one cluster"):
        compared(left, right)
