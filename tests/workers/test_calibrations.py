"""A calibration is owed once for each answered evaluation, and a checkpoint is deployed with one."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery

from config.settings import Settings
from deploy.errors import NotDeployable
from registry import asks, judgements, lineage
from registry.calibrations import Calibration, CalibrationOutcome, CalibrationRequest
from registry.messages import RankingRequest
from registry.records import Checkpoint
from registry.states import CheckpointState
from registry.store import Registry
from registry.testing import START, ManualClock, make_calibration, make_evaluation, make_ranking, make_suite
from workers import calibrations, pipeline
from workers.context import Context, Message
from workers.testing_evaluations import add_evaluated, right_on


@pytest.fixture
def evaluated(registry: Registry) -> Registry:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        add_evaluated(tx, "one", examples=right_on(20))
        add_evaluated(tx, "gone", examples=right_on(20), state=CheckpointState.QUARANTINED)
    return registry


def owed(registry: Registry, settings: Settings) -> list[Message]:
    with registry.transaction() as tx:
        suite = lineage.active_suite(tx)
        assert suite is not None
        return list(calibrations.owed(tx, suite=suite, settings=settings))


def test_an_answered_evaluation_is_owed_one_calibration_with_all_its_answers(
    evaluated: Registry, settings: Settings
) -> None:
    (message,) = owed(evaluated, settings)
    assert isinstance(message.request, CalibrationRequest)
    assert (message.task, message.request.checkpoint_id) == ("calibration.run", "one")
    assert len(message.request.samples) == 40
    assert owed(evaluated, settings) == []


def test_a_lost_request_has_expired_when_the_next_is_sent(
    evaluated: Registry, settings: Settings, clock: ManualClock
) -> None:
    (first,) = owed(evaluated, settings)
    assert first.expires_seconds is not None
    clock.advance(first.expires_seconds - 1)
    assert owed(evaluated, settings) == []
    clock.advance(1)
    assert len(owed(evaluated, settings)) == 1


def test_what_is_never_answered_becomes_unknown(
    evaluated: Registry, settings: Settings, clock: ManualClock
) -> None:
    for _ in range(settings.calibration.max_asks):
        assert len(owed(evaluated, settings)) == 1
        clock.advance(settings.calibration.retry_after_seconds)
    assert owed(evaluated, settings) == []
    with evaluated.reading() as tx:
        (found,) = tx.find(Calibration)
    assert (found.outcome, found.reason) == (CalibrationOutcome.UNKNOWN, "Asked 3 times, never answered.")


def test_a_calibration_that_arrives_twice_is_kept_once_as_it_was(
    evaluated: Registry, settings: Settings
) -> None:
    first = make_calibration(checkpoint_id="one", evaluation_id="eval-one")
    with evaluated.transaction() as tx:
        assert judgements.record_calibration(tx, calibration=first, actor="test") == first
        again = first.changed(reason="Something else.")
        assert judgements.record_calibration(tx, calibration=again, actor="test") is None
        assert tx.find(Calibration) == [first]


def test_the_best_is_not_deployed_before_its_calibration_is_there(
    evaluated: Registry, settings: Settings
) -> None:
    owed(evaluated, settings)
    with evaluated.transaction() as tx:
        tx.add(make_ranking("one"), actor="test")
        asks.put(tx, kind="ranking", subject_id="x")
        before = [message.task for message in pipeline.owed(tx, settings=settings)]
        calibration = make_calibration(checkpoint_id="one", evaluation_id="eval-one")
        judgements.record_calibration(tx, calibration=calibration, actor="test")
        after = [message.task for message in pipeline.owed(tx, settings=settings)]
    assert "deployment.sync_best" not in before
    assert "deployment.sync_best" in after


def test_a_release_carries_the_calibration_on_the_active_suite_and_not_a_later_one_on_another(
    evaluated: Registry,
) -> None:
    def kept(**changes: Any) -> Calibration:
        found = make_calibration(checkpoint_id="one", **changes)
        with evaluated.transaction() as tx:
            judgements.record_calibration(tx, calibration=found, actor="test")
        return found

    with evaluated.transaction() as tx:
        tx.add(make_suite(id="suite-2", content_sha256="2" * 64, is_active=False), actor="test")
        tx.add(make_evaluation(id="eval-other", checkpoint_id="one", suite_id="suite-2"), actor="test")
    later = START + timedelta(hours=1)
    other = kept(id="cal-other", evaluation_id="eval-other", suite_id="suite-2", decided_at=later)
    with evaluated.reading() as tx:
        assert calibrations.needed_for(tx, tx.get(Checkpoint, "one")) == other
    mine = kept(id="cal-mine", evaluation_id="eval-one", suite_id="suite-1")
    with evaluated.reading() as tx:
        assert calibrations.needed_for(tx, tx.get(Checkpoint, "one")) == mine


def test_a_checkpoint_without_a_calibration_is_refused_with_the_remedy(evaluated: Registry) -> None:
    with (
        evaluated.reading() as tx,
        pytest.raises(NotDeployable, match=r"no calibration yet.*checkpoint show"),
    ):
        calibrations.needed_for(tx, tx.get(Checkpoint, "one"))


def test_an_unknown_calibration_holds_nothing_back_and_is_said() -> None:
    unknown = make_calibration(outcome=CalibrationOutcome.UNKNOWN, map=None, reason="Too few rows.")
    assert calibrations.addition_to("best-ranked", calibration=unknown) == (
        "best-ranked; its confidence is unknown: Too few rows."
    )
    assert calibrations.addition_to("best-ranked", calibration=make_calibration()) == "best-ranked"


class Wire:
    """Stands for Celery: keeps what was sent."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def send_task(self, name: str, **options: Any) -> SimpleNamespace:
        self.options.append(options)
        return SimpleNamespace(id="1")


def test_a_message_that_expires_says_so_on_the_wire(evaluated: Registry, settings: Settings) -> None:
    wire = Wire()
    (message,) = owed(evaluated, settings)
    context = Context(settings, registry=evaluated, celery=cast("Celery", wire))
    context.send(message)
    context.send(Message("ranking.update", RankingRequest()))
    assert wire.options[0]["expires"] == settings.calibration.retry_after_seconds
    assert "expires" not in wire.options[1]


def test_a_checkpoint_that_a_person_names_is_calibrated_on_the_spot_and_once(
    evaluated: Registry, settings: Settings
) -> None:
    for _ in range(2):
        calibrations.judge_now(evaluated, checkpoint_id="one", settings=settings, actor="person")
    with evaluated.reading() as tx:
        (found,) = tx.find(Calibration)
        assert calibrations.needed_for(tx, tx.get(Checkpoint, "one")) == found
    assert owed(evaluated, settings) == []


def test_what_was_never_evaluated_is_not_calibrated_on_the_spot(
    evaluated: Registry, settings: Settings
) -> None:
    calibrations.judge_now(evaluated, checkpoint_id="nobody", settings=settings, actor="person")
    with evaluated.reading() as tx:
        assert tx.find(Calibration) == []
