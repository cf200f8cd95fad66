import json

import numpy as np
import pytest

from config.settings import Settings
from intelligence.accuracy import report
from intelligence.regression import judge
from intelligence.summary import summarise
from registry import accuracy, judgements
from registry.messages import AccuracyRequest, RegressionRequest
from registry.records import Evaluation, Verdict
from registry.states import AlertLevel, CheckpointState, EvaluationState, Outcome
from registry.store import Registry
from registry.testing import START, make_checkpoint, make_evaluation, make_evidence, make_suite
from workers import judgement_files, projections
from workers.judgement_files import automated_testing, regression_monitoring
from workers.status import checkpoint_lines
from workers.testing_evaluations import add_evaluated, right_on

NUM_ROWS = 120
LEVELS = ["easy" if place % 2 else "hard" for place in range(NUM_ROWS)]


@pytest.fixture
def judged(registry: Registry, settings: Settings) -> Registry:
    """A base and a candidate that lost a third of its hard rows, both judged."""
    losses = np.random.default_rng(0).gamma(2.0, 0.5, NUM_ROWS)
    lost = [level == "hard" and place % 3 == 0 for place, level in enumerate(LEVELS)]
    base = make_evidence("base", losses=losses, difficulty=LEVELS)
    new = make_evidence(
        "new", losses=np.where(lost, 4 * losses, losses), correct=[not one for one in lost], difficulty=LEVELS
    )
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for step, side in enumerate((base, new)):
            state = CheckpointState.CANDIDATE
            tx.add(make_checkpoint(id=side.checkpoint_id, step=step, state=state), actor="test")
            record = make_evaluation(
                id=side.evaluation_id,
                checkpoint_id=side.checkpoint_id,
                state=EvaluationState.ANSWERED,
                summary=summarise(side.examples),
            )
            tx.add(record, actor="test")
        check = RegressionRequest(
            verdict_id="verdict-1", candidate=new, baseline=base, limits=settings.regression
        )
        verdict = judge(check, now=START, rng=np.random.default_rng(0))
        judgements.record_verdict(tx, verdict=verdict, actor="test")
        for side, before in ((base, None), (new, base)):
            test = AccuracyRequest(
                report_id=accuracy.report_id(side.evaluation_id),
                candidate=side,
                baseline=before,
                limits=settings.testing,
            )
            accuracy.record_report(tx, report=report(test, now=START), actor="test")
    return registry


def test_regression_monitoring_tells_slices_power_alerts_and_the_first_anchor(judged: Registry) -> None:
    with judged.reading() as tx:
        found = regression_monitoring(tx, stale_after_seconds=60)
    assert (found.num_regressed, found.num_passed, found.first_anchor_checkpoint_id) == (1, 0, "base")
    (line,) = found.verdicts
    assert {one.name: one.outcome for one in line.slices} == {"easy": Outcome.PASS, "hard": Outcome.REGRESSED}
    assert all(one.num_pairs == one.loss_increase.num_samples == NUM_ROWS // 2 for one in line.slices)
    assert line.power is not None
    assert [(alert.level, alert.checkpoint_id) for alert in found.alerts] == [(AlertLevel.CRITICAL, "new")]


def test_automated_testing_tells_levels_flips_and_the_history(judged: Registry) -> None:
    with judged.reading() as tx:
        found = automated_testing(tx, stale_after_seconds=60)
    assert {line.checkpoint_id for line in found.reports} == {"base", "new"}
    line = next(line for line in found.reports if line.checkpoint_id == "new")
    assert {one.name: one.level for one in line.levels} == {"easy": None, "hard": AlertLevel.CRITICAL}
    assert len(line.lost_row_ids) == NUM_ROWS // 6
    assert line.gained_row_ids == ()
    assert [point.checkpoint_id for point in found.history] == ["base", "new"]
    assert all(point.accuracy and point.accuracy.num_samples == NUM_ROWS for point in found.history)
    assert set(found.history[0].accuracy_by_difficulty) == {"easy", "hard"}
    assert [alert.level for alert in found.alerts] == [AlertLevel.CRITICAL]


def test_both_files_are_strict_json_and_no_evaluation_is_left_untested(
    judged: Registry, settings: Settings
) -> None:
    projections.refresh(judged, settings=settings)
    for name in ("regression_monitoring", "automated_testing"):
        assert json.loads((settings.paths.status / f"{name}.json").read_text())["alerts"]
    with judged.reading() as tx:
        assert accuracy.untested(tx, suite_id="suite-1") == []
        assert len(tx.find(Evaluation)) == 2


def test_without_a_suite_automated_testing_says_so(registry: Registry) -> None:
    with registry.reading() as tx:
        found = automated_testing(tx, stale_after_seconds=60)
    assert (found.suite_id, found.note, found.reports) == (None, "no suite is active", ())


def test_the_accuracy_of_a_checkpoint_without_one_known_answer_is_unknown_and_not_0(
    judged: Registry, settings: Settings
) -> None:
    examples = tuple(one.changed(loss=None, problem="NaN", is_correct=False) for one in right_on(20))
    with judged.transaction() as tx:
        add_evaluated(tx, "broken", examples=examples, step=9)
        point = automated_testing(tx, stale_after_seconds=60).history[-1]
        line = next(one for one in checkpoint_lines(tx) if one.id == "broken")
    assert (point.checkpoint_id, point.accuracy, point.accuracy_by_difficulty) == ("broken", None, {})
    assert point.num_unknown == len(examples)
    assert (line.accuracy, line.accuracy_by_difficulty, line.loss) == (None, {}, None)


def test_verdicts_are_counted_also_where_they_are_too_old_to_be_listed(
    judged: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement_files, "MAX_VERDICTS", 1)
    with judged.transaction() as tx:
        (verdict,) = tx.find(Verdict)
        for place, outcome in enumerate((Outcome.PASS, Outcome.UNKNOWN, Outcome.PASS)):
            tx.add(verdict.changed(id=f"verdict-{place + 2}", outcome=outcome), actor="test")
        found = regression_monitoring(tx, stale_after_seconds=60)
    assert len(found.verdicts) == 1
    assert found.verdicts[0].suite_id == "suite-1"
    assert (found.num_passed, found.num_watched, found.num_regressed, found.num_unknown) == (2, 0, 1, 1)
