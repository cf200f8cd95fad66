import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intelligence.accuracy import report
from registry.messages import AccuracyLimits, AccuracyRequest, Evidence
from registry.reports import AccuracyReport
from registry.states import AlertLevel
from registry.testing import START, make_evidence

flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def reported(candidate: Evidence, baseline: Evidence | None) -> AccuracyReport:
    request = AccuracyRequest(
        report_id="accuracy-1", candidate=candidate, baseline=baseline, limits=AccuracyLimits()
    )
    return report(request, now=START)


def answers(name: str, correct: list[bool], **columns) -> Evidence:
    return make_evidence(name, losses=[0.5] * len(correct), correct=correct, **columns)


def drop(num_lost: int, *, num_rows: int = 400) -> AccuracyReport:
    correct = [place >= num_lost for place in range(num_rows)]
    return reported(answers("new", correct), answers("old", [True] * num_rows))


@pytest.mark.parametrize(
    ("num_lost", "level"),
    [(0, None), (19, None), (20, AlertLevel.WARNING), (59, AlertLevel.WARNING), (60, AlertLevel.CRITICAL)],
)
def test_five_points_warn_and_fifteen_are_critical(num_lost: int, level: AlertLevel | None) -> None:
    found = drop(num_lost)
    assert found.level is level
    assert found.total is not None
    assert found.total.change is not None
    assert found.total.change.value == pytest.approx(-num_lost / 400)


def test_a_large_drop_that_may_be_chance_raises_no_alert_and_says_so() -> None:
    found = drop(4, num_rows=40)
    assert found.total is not None
    assert found.total.p_value == pytest.approx(0.125)
    assert found.level is None
    assert found.reasons == (
        "The accuracy of all rows changed by -10.0 points (95 % interval -23.1 to +0.6, n = 40, 4 lost, "
        "0 gained, McNemar p = 0.12). It may be chance.",
    )


def test_the_rows_that_flipped_are_named_in_both_directions() -> None:
    found = reported(answers("new", [True, False, True, False]), answers("old", [False, True, True, False]))
    assert (found.gained_row_ids, found.lost_row_ids) == (("row-0000",), ("row-0001",))


def test_a_difficulty_that_fell_alarms_by_its_name_though_the_whole_is_well() -> None:
    levels = ["hard" if place < 40 else "easy" for place in range(400)]
    found = reported(
        answers("new", [place >= 16 for place in range(400)], difficulty=levels),
        answers("old", [True] * 400, difficulty=levels),
    )
    assert found.total is not None
    assert found.total.level is None
    assert {one.name: one.level for one in found.levels} == {"easy": None, "hard": AlertLevel.CRITICAL}
    assert found.level is AlertLevel.CRITICAL
    assert found.reasons[0].startswith("The accuracy of hard changed by -40.0 points")
    easy = next(one for one in found.levels if one.name == "easy")
    assert easy.accuracy.num_samples == 360


def test_the_first_anchor_has_accuracy_and_nothing_to_lose() -> None:
    found = reported(answers("base", [True, False], difficulty=["easy", "hard"]), None)
    assert found.total is not None
    assert (found.total.accuracy.value, found.total.change, found.level) == (0.5, None, None)
    assert [one.name for one in found.levels] == ["easy", "hard"]


def test_a_row_whose_loss_is_unknown_counts_as_wrong_on_either_side() -> None:
    new, old = answers("new", [True] * 30), answers("old", [True] * 30)
    broken = new.examples[0].changed(loss=None, problem="the loss is nan")
    found = reported(new.changed(examples=(broken, *new.examples[1:])), old)
    assert found.lost_row_ids == ("row-0000",)
    assert found.reasons[-1] == "1 of 30 answers of the checkpoint are unknown and count as wrong."


def test_other_rows_are_no_comparison() -> None:
    found = reported(answers("new", [True] * 30), answers("old", [True] * 31))
    assert found.total is None
    assert "The rows differ" in found.reasons[0]


@given(flags)
@settings(deadline=None)
def test_intervals_hold_their_estimates_and_flips_add_up(rows: list[tuple[bool, bool]]) -> None:
    found = reported(answers("new", [row[0] for row in rows]), answers("old", [row[1] for row in rows]))
    total = found.total
    assert total is not None
    assert total.change is not None
    assert total.baseline is not None
    assert total.change.low <= total.change.value <= total.change.high
    assert total.change.value == pytest.approx(total.accuracy.value - total.baseline.value)
    assert total.num_gained == len(found.gained_row_ids)
    assert total.num_lost == len(found.lost_row_ids)


@given(flags, st.randoms())
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter(rows: list[tuple[bool, bool]], random) -> None:
    new, old = answers("new", [row[0] for row in rows]), answers("old", [row[1] for row in rows])
    shuffled = new.changed(examples=tuple(random.sample(new.examples, len(new.examples))))
    assert reported(new, old) == reported(shuffled, old)


def test_of_a_checkpoint_whose_every_answer_is_unknown_nothing_is_said_and_no_row_counts_as_lost() -> None:
    new, old = answers("new", [True] * 30), answers("old", [True] * 30)
    broken = new.changed(
        examples=tuple(one.changed(loss=None, problem="NaN weights") for one in new.examples)
    )
    found = reported(broken, old)
    assert (found.total, found.levels, found.lost_row_ids, found.level) == (None, (), (), None)
    assert found.reasons == ("The answers to all 30 rows of the checkpoint are unknown (NaN weights).",)
    assert reported(old, broken).reasons == (
        "The answers to all 30 rows of the baseline are unknown (NaN weights).",
    )
    assert reported(broken, None).total is None


def test_a_checkpoint_that_is_older_than_its_baseline_is_behind_and_raises_no_alert() -> None:
    request = AccuracyRequest(
        report_id="accuracy-1",
        candidate=answers("old", [place >= 200 for place in range(400)]),
        baseline=answers("new", [True] * 400),
        limits=AccuracyLimits(),
        may_alarm=False,
    )
    found = report(request, now=START)
    assert found.total is not None
    assert (found.level, found.total.level, found.total.num_lost) == (None, None, 200)
    assert found.reasons[0].startswith("The accuracy of all rows changed by -50.0 points")
    assert "chance" not in found.reasons[0]
