from datetime import timedelta

from registry import asks, judgements
from registry.messages import EvaluationDeferral
from registry.records import Checkpoint, Evaluation
from registry.states import CheckpointState, EvaluationState
from registry.store import Registry
from registry.testing import START, ManualClock, make_checkpoint, make_evaluation, make_suite

CHECKPOINT = "ckpt-aaaaaa-00000010"


def ask(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(make_checkpoint(state=CheckpointState.CANDIDATE), actor="test")
        tx.add(make_evaluation(), actor="test")
        asks.put(tx, kind="evaluation", subject_id="eval-1")


def test_an_evaluation_that_waits_says_why_and_is_asked_again_soon_without_being_counted(
    registry: Registry, clock: ManualClock
) -> None:
    ask(registry)
    deferral = EvaluationDeferral(evaluation_id="eval-1", reason="gpu-0 is held", host="eyes")
    question = {"kind": "evaluation", "subject_id": "eval-1"}
    with registry.transaction() as tx:
        judgements.note_deferral(tx, deferral=deferral)
        asks.postpone(tx, seconds=60, retry_after_seconds=900, **question)
        assert tx.get(Evaluation, "eval-1").problem == "waits on eyes: gpu-0 is held"
        assert asks.num_asked(tx, **question) == 0
        assert not asks.is_due(tx, retry_after_seconds=900, **question)
    clock.now = START + timedelta(seconds=60)
    with registry.reading() as tx:
        assert asks.is_due(tx, retry_after_seconds=900, **question)


def test_a_question_about_a_checkpoint_that_is_gone_is_given_up(registry: Registry) -> None:
    ask(registry)
    with registry.transaction() as tx:
        assert judgements.prune(tx, actor="sweep") == []
        tx.transition(tx.get(Checkpoint, CHECKPOINT), to=CheckpointState.RETIRED, actor="me")
        assert [found.id for found in judgements.prune(tx, actor="sweep")] == ["eval-1"]
        given_up = tx.get(Evaluation, "eval-1")
    assert (given_up.state, given_up.problem) == (EvaluationState.FAILED, "its checkpoint is retired")
