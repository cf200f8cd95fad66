"""What the registry owes, step by step, with every message lost once."""

from datetime import timedelta

import numpy as np
import pytest

from config.settings import Settings
from intelligence.accuracy import report
from intelligence.regression import judge
from intelligence.summary import summarise
from registry import accuracy, asks, judgements, leases
from registry.ids import id_of
from registry.messages import AccuracyRequest, EvaluationAnswer, EvaluationRequest, RegressionRequest
from registry.records import Checkpoint, Evaluation, Verdict
from registry.states import CheckpointState, DeploymentState, EvaluationState, Outcome
from registry.store import Registry
from registry.testing import (
    START,
    ManualClock,
    add_queued_job,
    make_calibration,
    make_checkpoint,
    make_deployment,
    make_example,
    make_ranking,
    make_suite,
)
from workers import standings
from workers.context import Message
from workers.pipeline import bells, owed
from workers.releases import RESOURCE

EXAMPLES = tuple(make_example(row_id=f"row-{number}") for number in range(40))


@pytest.fixture
def base(registry: Registry) -> Checkpoint:
    record = make_checkpoint(id="base-aaaaaa", origin="base", step=0)
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(record, actor="test")
    return record


def ask(registry: Registry, settings: Settings) -> list[Message]:
    with registry.transaction() as tx:
        return owed(tx, settings=settings)


def answer(registry: Registry, request: EvaluationRequest, *, problem: str = "") -> None:
    reply = EvaluationAnswer(
        evaluation_id=request.evaluation_id,
        checkpoint_id=request.checkpoint_id,
        suite_id=request.suite_id,
        examples=() if problem else EXAMPLES,
        problem=problem,
        host="intel",
        started_at=START,
        finished_at=START,
    )
    summary = None if problem else summarise(reply.examples)
    with registry.transaction() as tx:
        judgements.record_answer(tx, answer=reply, summary=summary, actor="test")
        asks.settle(tx, kind="evaluation", subject_id=request.evaluation_id)
        if not problem:
            calibrated = make_calibration(
                id=id_of("cal", request.evaluation_id),
                checkpoint_id=request.checkpoint_id,
                evaluation_id=request.evaluation_id,
            )
            judgements.record_calibration(tx, calibration=calibrated, actor="test")


def evaluate_base(registry: Registry, settings: Settings) -> None:
    (message,) = ask(registry, settings)
    assert isinstance(message.request, EvaluationRequest)
    answer(registry, message.request)


def make_standing_ranking(registry: Registry, settings: Settings) -> None:
    with registry.transaction() as tx:
        standing = standings.load(tx)
        assert standing is not None
        tx.add(
            make_ranking(
                *(checkpoint.id for checkpoint, _ in standing.pairs),
                evidence_sha256=standing.fingerprint(settings.ranking),
            ),
            actor="test",
        )


def add_candidate(registry: Registry, checkpoint_id: str = "ckpt-bbbbbb-00000010") -> str:
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id=checkpoint_id), actor="test")
    return checkpoint_id


def evaluated_candidate(registry: Registry, settings: Settings) -> RegressionRequest:
    add_candidate(registry)
    (message,) = [found for found in ask(registry, settings) if found.task == "evaluation.run"]
    assert isinstance(message.request, EvaluationRequest)
    answer(registry, message.request)
    (check,) = [found for found in ask(registry, settings) if found.task == "regression.check"]
    assert isinstance(check.request, RegressionRequest)
    return check.request


def test_nothing_is_owed_without_a_suite(registry: Registry, settings: Settings) -> None:
    add_candidate(registry)
    assert ask(registry, settings) == []


def test_a_complete_checkpoint_is_owed_one_evaluation(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    (message,) = ask(registry, settings)
    assert message.task == "evaluation.run"
    assert ask(registry, settings) == []
    with registry.reading() as tx:
        assert tx.get(Checkpoint, base.id).state is CheckpointState.CANDIDATE


def test_a_lost_evaluation_is_asked_again_and_given_up_after_three(
    registry: Registry, settings: Settings, base: Checkpoint, clock: ManualClock
) -> None:
    for _ in range(settings.evaluation.max_asks):
        assert [message.task for message in ask(registry, settings)] == ["evaluation.run"]
        clock.advance(settings.evaluation.retry_after_seconds)
    assert ask(registry, settings) == []
    with registry.reading() as tx:
        (evaluation,) = tx.find(Evaluation, checkpoint_id=base.id)
        (verdict,) = tx.find(Verdict, checkpoint_id=base.id)
    assert evaluation.state is EvaluationState.FAILED
    assert verdict.outcome is Outcome.UNKNOWN


def test_no_more_evaluations_are_asked_for_than_the_hosts_can_take(
    registry: Registry, settings: Settings, base: Checkpoint, clock: ManualClock
) -> None:
    for number in range(4):
        add_candidate(registry, f"ckpt-bbbbbb-0000001{number}")
        clock.advance(1)
    first = [message.request for message in ask(registry, settings)]
    assert len(first) == settings.evaluation.asked_at_once == 2
    assert isinstance(first[0], EvaluationRequest)
    assert first[0].checkpoint_id == base.id
    assert ask(registry, settings) == []
    answer(registry, first[0])
    asked = [message.task for message in ask(registry, settings)]
    assert asked.count("evaluation.run") == 1


def test_one_that_is_put_off_gives_its_place_to_another(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    for number in range(2):
        add_candidate(registry, f"ckpt-bbbbbb-0000001{number}")
    put_off, _ = [message.request for message in ask(registry, settings)]
    assert isinstance(put_off, EvaluationRequest)
    with registry.transaction() as tx:
        asks.postpone(
            tx,
            kind="evaluation",
            subject_id=put_off.evaluation_id,
            seconds=settings.guard.defer_seconds,
            retry_after_seconds=settings.evaluation.retry_after_seconds,
        )
    (message,) = ask(registry, settings)
    assert isinstance(message.request, EvaluationRequest)
    assert message.request.evaluation_id != put_off.evaluation_id


def test_the_base_model_is_the_first_anchor(registry: Registry, settings: Settings, base: Checkpoint) -> None:
    evaluate_base(registry, settings)
    ask(registry, settings)
    with registry.reading() as tx:
        assert tx.get(Checkpoint, base.id).state is CheckpointState.ACCEPTED


def test_a_candidate_is_compared_with_the_base_until_something_is_served(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    evaluate_base(registry, settings)
    request = evaluated_candidate(registry, settings)
    assert request.baseline is not None
    assert request.baseline.checkpoint_id == base.id
    assert len(request.candidate.examples) == len(request.baseline.examples) == len(EXAMPLES)


def test_a_candidate_waits_while_the_anchor_is_not_measured(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    candidate = add_candidate(registry)
    for message in ask(registry, settings):
        assert isinstance(message.request, EvaluationRequest)
        if message.request.checkpoint_id == candidate:
            answer(registry, message.request)
    assert ask(registry, settings) == []
    assert base.id


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.PASS, CheckpointState.ACCEPTED),
        (Outcome.REGRESSED, CheckpointState.QUARANTINED),
        (Outcome.WATCH, CheckpointState.CANDIDATE),
        (Outcome.UNKNOWN, CheckpointState.CANDIDATE),
    ],
)
def test_only_pass_accepts_and_unknown_blocks(
    registry: Registry, settings: Settings, base: Checkpoint, outcome: Outcome, state: CheckpointState
) -> None:
    evaluate_base(registry, settings)
    request = evaluated_candidate(registry, settings)
    verdict = Verdict(
        id=request.verdict_id,
        checkpoint_id=request.candidate.checkpoint_id,
        suite_id="suite-1",
        evaluation_id=request.candidate.evaluation_id,
        baseline_checkpoint_id=base.id,
        baseline_evaluation_id=None,
        outcome=outcome,
        reasons=("because",),
        num_pairs=40,
        decided_at=START,
    )
    with registry.transaction() as tx:
        assert judgements.record_verdict(tx, verdict=verdict, actor="test") is not None
        assert judgements.record_verdict(tx, verdict=verdict, actor="test") is None
        assert tx.get(Checkpoint, verdict.checkpoint_id).state is state


def test_an_answer_that_comes_twice_is_recorded_once(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    (message,) = ask(registry, settings)
    assert isinstance(message.request, EvaluationRequest)
    answer(registry, message.request)
    answer(registry, message.request)
    with registry.reading() as tx:
        assert len(tx.find(Evaluation, checkpoint_id=base.id)) == 1
        assert judgements.examples_of(tx, evaluation_id=message.request.evaluation_id) == EXAMPLES


def test_an_answer_that_comes_a_day_late_is_recorded_once_and_judged(
    registry: Registry, settings: Settings, base: Checkpoint, clock: ManualClock
) -> None:
    (message,) = ask(registry, settings)
    assert isinstance(message.request, EvaluationRequest)
    for _ in range(settings.evaluation.max_asks):
        clock.advance(settings.evaluation.retry_after_seconds)
        ask(registry, settings)
    clock.advance(86_400)
    answer(registry, message.request)
    answer(registry, message.request)
    ask(registry, settings)
    with registry.reading() as tx:
        (evaluation,) = tx.find(Evaluation, checkpoint_id=base.id)
        checkpoint = tx.get(Checkpoint, base.id)
        assert judgements.examples_of(tx, evaluation_id=evaluation.id) == EXAMPLES
    assert evaluation.state is EvaluationState.ANSWERED
    assert checkpoint.state is CheckpointState.ACCEPTED


def test_an_evaluation_with_a_problem_means_unknown(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    evaluate_base(registry, settings)
    candidate = add_candidate(registry)
    (message,) = [found for found in ask(registry, settings) if found.task == "evaluation.run"]
    assert isinstance(message.request, EvaluationRequest)
    answer(registry, message.request, problem="its tokenizer is missing")
    ask(registry, settings)
    with registry.reading() as tx:
        (verdict,) = tx.find(Verdict, checkpoint_id=candidate)
    assert verdict.outcome is Outcome.UNKNOWN
    assert "its tokenizer is missing" in verdict.reasons[0]
    assert base.id


def test_a_base_model_that_cannot_be_evaluated_makes_candidates_unknown_until_it_can(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    candidate = add_candidate(registry)
    requests = {
        message.request.checkpoint_id: message.request
        for message in ask(registry, settings)
        if isinstance(message.request, EvaluationRequest)
    }
    answer(registry, requests[candidate])
    answer(registry, requests[base.id], problem="its tokenizer is missing")
    for _ in range(2):
        ask(registry, settings)
    with registry.reading() as tx:
        (verdict,) = tx.find(Verdict, checkpoint_id=candidate)
        assert tx.get(Checkpoint, candidate).state is CheckpointState.CANDIDATE
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reasons == ("The base model's evaluation has no result: its tokenizer is missing",)
    answer(registry, requests[base.id])
    # One look may accept the base model, the next compares with it.
    owed_now = [message.task for _ in range(2) for message in ask(registry, settings)]
    assert owed_now.count("regression.check") == 1


def test_an_answer_that_comes_after_it_was_given_up_is_judged_all_the_same(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    evaluate_base(registry, settings)
    add_candidate(registry)
    (message,) = [found for found in ask(registry, settings) if found.task == "evaluation.run"]
    assert isinstance(message.request, EvaluationRequest)
    answer(registry, message.request, problem="the host was cut off")
    ask(registry, settings)
    answer(registry, message.request)
    assert "regression.check" in [found.task for found in ask(registry, settings)]
    assert base.id


def test_a_ranking_is_owed_when_a_checkpoint_was_accepted_and_the_best_one_is_deployed(
    registry: Registry, settings: Settings, base: Checkpoint, clock: ManualClock
) -> None:
    evaluate_base(registry, settings)
    assert [message.task for message in ask(registry, settings)] == ["testing.run", "ranking.update"]
    make_standing_ranking(registry, settings)
    assert [message.task for message in ask(registry, settings)] == ["deployment.sync_best"]
    assert ask(registry, settings) == []


def test_a_release_that_was_taken_back_is_not_brought_forward_again(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    test_a_ranking_is_owed_when_a_checkpoint_was_accepted_and_the_best_one_is_deployed(
        registry, settings, base, ManualClock()
    )
    with registry.transaction() as tx:
        tx.add(
            make_deployment(checkpoint_id=base.id, state=DeploymentState.ROLLED_BACK, activated_at=None),
            actor="test",
        )
    clock = registry.clock
    assert isinstance(clock, ManualClock)
    clock.advance(3600)
    assert "deployment.sync_best" not in [message.task for message in ask(registry, settings)]


def test_a_waiting_job_without_a_message_is_rung_and_one_with_a_message_is_not(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-a", priority="low")
        add_queued_job(tx, id="job-b", priority="low")
        assert [message.queue for message in bells(tx, num_messages={})] == ["low", "low"]
        assert len(bells(tx, num_messages={"low": 1})) == 1
        assert bells(tx, num_messages={"low": 2, "high": 0}) == []


def owed_tests(messages: list[Message]) -> list[AccuracyRequest]:
    return [message.request for message in messages if isinstance(message.request, AccuracyRequest)]


def test_every_answered_evaluation_is_owed_one_test_against_the_same_anchor_as_its_verdict(
    registry: Registry, settings: Settings, base: Checkpoint, clock: ManualClock
) -> None:
    evaluate_base(registry, settings)
    (first,) = owed_tests(ask(registry, settings))
    assert (first.candidate.checkpoint_id, first.baseline) == (base.id, None)
    add_candidate(registry)
    (message,) = [found for found in ask(registry, settings) if found.task == "evaluation.run"]
    assert isinstance(message.request, EvaluationRequest)
    answer(registry, message.request)
    messages = ask(registry, settings)
    (request,) = owed_tests(messages)
    (check,) = [found.request for found in messages if isinstance(found.request, RegressionRequest)]
    assert (request.candidate, request.baseline) == (check.candidate, check.baseline)
    assert owed_tests(ask(registry, settings)) == []
    clock.advance(settings.evaluation.retry_after_seconds)
    assert {found.report_id for found in owed_tests(ask(registry, settings))} == {
        first.report_id,
        request.report_id,
    }
    with registry.transaction() as tx:
        accuracy.record_report(tx, report=report(request, now=START), actor="test")
        asks.settle(tx, kind="accuracy", subject_id=request.candidate.evaluation_id)
    clock.advance(settings.evaluation.retry_after_seconds)
    assert [found.report_id for found in owed_tests(ask(registry, settings))] == [first.report_id]


def test_a_test_waits_while_the_anchor_is_not_measured(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    candidate = add_candidate(registry)
    for message in ask(registry, settings):
        assert isinstance(message.request, EvaluationRequest)
        if message.request.checkpoint_id == candidate:
            answer(registry, message.request)
    assert owed_tests(ask(registry, settings)) == []
    assert base.id


def test_drift_is_measured_from_the_first_anchor_once_another_one_took_its_place(
    registry: Registry, settings: Settings, base: Checkpoint
) -> None:
    evaluate_base(registry, settings)
    request = evaluated_candidate(registry, settings)
    assert request.first_anchor is None
    with registry.transaction() as tx:
        verdict = judge(request, now=tx.now, rng=np.random.default_rng(0))
        judgements.record_verdict(tx, verdict=verdict, actor="test")
        tx.add(
            make_deployment(checkpoint_id=request.candidate.checkpoint_id),
            actor="test",
        )
    add_candidate(registry, "ckpt-cccccc-00000010")
    (message,) = [found for found in ask(registry, settings) if found.task == "evaluation.run"]
    assert isinstance(message.request, EvaluationRequest)
    answer(registry, message.request)
    (check,) = [found.request for found in ask(registry, settings) if found.task == "regression.check"]
    assert isinstance(check, RegressionRequest)
    assert check.baseline is not None
    assert check.first_anchor is not None
    assert check.baseline.checkpoint_id == request.candidate.checkpoint_id
    assert check.first_anchor.checkpoint_id == base.id
    found = judge(check, now=START, rng=np.random.default_rng(0))
    assert found.drift is not None
    assert found.drift.checkpoint_id == base.id


def serve(registry: Registry, checkpoint_id: str) -> None:
    with registry.transaction() as tx:
        tx.add(
            make_deployment(checkpoint_id=checkpoint_id),
            actor="test",
        )


def change_suite(registry: Registry, settings: Settings) -> dict[str, EvaluationRequest]:
    """A new suite is active; what is asked of each checkpoint then, where hosts can take them all."""
    evaluation = settings.evaluation.model_copy(update={"asked_at_once": 10})
    settings = settings.model_copy(update={"evaluation": evaluation})
    with registry.transaction() as tx:
        tx.update(make_suite(), is_active=False)
        tx.add(make_suite(id="suite-2", content_sha256="2" * 64), actor="test")
    asked = [message.request for message in ask(registry, settings)]
    return {one.checkpoint_id: one for one in asked if isinstance(one, EvaluationRequest)}


@pytest.fixture
def served(registry: Registry, settings: Settings, base: Checkpoint) -> str:
    """An accepted checkpoint that is served, beside the base model."""
    evaluate_base(registry, settings)
    request = evaluated_candidate(registry, settings)
    with registry.transaction() as tx:
        verdict = judge(request, now=tx.now, rng=np.random.default_rng(0))
        judgements.record_verdict(tx, verdict=verdict, actor="test")
    serve(registry, request.candidate.checkpoint_id)
    return request.candidate.checkpoint_id


def test_after_a_change_of_the_suite_a_candidate_waits_for_the_served_checkpoint_and_not_the_base(
    registry: Registry, settings: Settings, base: Checkpoint, served: str
) -> None:
    candidate = add_candidate(registry, "ckpt-cccccc-00000010")
    asked = change_suite(registry, settings)
    answer(registry, asked[base.id])
    answer(registry, asked[candidate])
    assert not {"regression.check", "testing.run"} & {found.task for found in ask(registry, settings)}
    with registry.reading() as tx:
        assert tx.find(Verdict, checkpoint_id=candidate) == []
    answer(registry, asked[served])
    (check,) = [found.request for found in ask(registry, settings) if found.task == "regression.check"]
    assert isinstance(check, RegressionRequest)
    assert check.baseline is not None
    assert check.baseline.checkpoint_id == served


def test_after_a_change_of_the_suite_what_others_are_compared_with_is_evaluated_first(
    registry: Registry, settings: Settings, base: Checkpoint, served: str
) -> None:
    with registry.transaction() as tx:
        tx.add(
            make_checkpoint(id="ckpt-0", state="accepted", created_at=START - timedelta(days=1)), actor="t"
        )
    candidate = add_candidate(registry, "ckpt-cccccc-00000010")
    asked = list(change_suite(registry, settings))
    assert asked == [served, base.id, candidate, "ckpt-0"]


def test_a_served_checkpoint_that_cannot_be_evaluated_on_a_new_suite_gives_way_to_the_next_claim(
    registry: Registry, settings: Settings, base: Checkpoint, served: str
) -> None:
    candidate = add_candidate(registry, "ckpt-cccccc-00000010")
    asked = change_suite(registry, settings)
    answer(registry, asked[candidate])
    answer(registry, asked[base.id], problem="it broke")
    assert "regression.check" not in {found.task for found in ask(registry, settings)}
    with registry.reading() as tx:
        assert tx.find(Verdict, checkpoint_id=candidate) == []
    answer(registry, asked[served], problem="it broke too")
    ask(registry, settings)
    with registry.reading() as tx:
        (verdict,) = tx.find(Verdict, checkpoint_id=candidate)
    assert (verdict.outcome, "it broke" in verdict.reasons[0]) == (Outcome.UNKNOWN, True)


def test_nothing_takes_the_served_place_while_what_is_served_is_not_evaluated_on_the_new_suite(
    registry: Registry, settings: Settings, base: Checkpoint, served: str
) -> None:
    asked = change_suite(registry, settings)
    answer(registry, asked[base.id])
    ask(registry, settings)
    with registry.transaction() as tx:
        tx.add(make_ranking(base.id, suite_id="suite-2", served_checkpoint_id=served), actor="test")
    assert "deployment.sync_best" not in {found.task for found in ask(registry, settings)}
    answer(registry, asked[served], problem="it broke")
    assert "deployment.sync_best" in {found.task for found in ask(registry, settings)}


def test_a_ranking_made_when_another_was_served_is_made_anew_before_anything_is_deployed(
    registry: Registry, settings: Settings, base: Checkpoint, served: str
) -> None:
    asked = change_suite(registry, settings)
    for name, changes in ((base.id, {}), (served, {"problem": "it broke"})):
        answer(registry, asked[name], **changes)
    ask(registry, settings)
    with registry.transaction() as tx:
        tx.add(make_ranking(base.id, suite_id="suite-2"), actor="test")
    assert "deployment.sync_best" not in {found.task for found in ask(registry, settings)}
    with registry.transaction() as tx:
        again = {"id": "rank-2", "made_at": tx.now + timedelta(seconds=1), "served_checkpoint_id": served}
        tx.add(make_ranking(base.id, suite_id="suite-2", **again), actor="test")
    assert "deployment.sync_best" in {found.task for found in ask(registry, settings)}


def test_a_checkpoint_that_is_older_than_the_anchor_is_tested_and_may_not_alarm(
    registry: Registry, settings: Settings, base: Checkpoint, clock: ManualClock
) -> None:
    evaluate_base(registry, settings)
    ask(registry, settings)
    clock.advance(60)
    with registry.transaction() as tx:
        served = make_checkpoint(id="served", state=CheckpointState.ACCEPTED, created_at=tx.now)
        tx.add(served, actor="test")
    serve(registry, served.id)
    asked = change_suite(registry, settings)
    for request in asked.values():
        answer(registry, request)
    tests = {one.candidate.checkpoint_id: one for one in owed_tests(ask(registry, settings))}
    assert tests[base.id].baseline is not None
    assert (tests[base.id].may_alarm, tests[served.id].may_alarm) == (False, True)


@pytest.mark.parametrize(
    "state", [DeploymentState.PLANNED, DeploymentState.SYNCING, DeploymentState.VERIFIED]
)
def test_a_deployment_whose_deployer_died_is_seen_to_once_its_lease_lapsed(
    registry: Registry, settings: Settings, clock: ManualClock, state: DeploymentState
) -> None:
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="ckpt-aaaaaa-00000010"), actor="test")
        tx.add(make_deployment(state=state, activated_at=None), actor="test")
        leases.acquire(tx, resource=RESOURCE, holder="dead", seconds=60)
    assert ask(registry, settings) == []
    clock.advance(61)
    assert [message.task for message in ask(registry, settings)] == ["deployment.sync_best"]
    assert ask(registry, settings) == []


def test_a_deployment_that_ended_needs_nobody(registry: Registry, settings: Settings) -> None:
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="ckpt-aaaaaa-00000010"), actor="test")
        tx.add(make_deployment(state=DeploymentState.FAILED, activated_at=None), actor="test")
    assert ask(registry, settings) == []
