"""Answers and verdicts: recorded once, whether they arrive twice or a day late."""

from __future__ import annotations

import heapq
from collections import Counter

from sqlalchemy import func, insert, select

from registry.accuracy import raise_alert
from registry.calibrations import Calibration
from registry.files import sha256_text
from registry.messages import EvaluationAnswer, EvaluationDeferral
from registry.records import Checkpoint, Evaluation, EvaluationSummary, ExampleResult, Verdict
from registry.states import AlertLevel, AlertSource, CheckpointState, EvaluationState, Outcome
from registry.store import Transaction
from registry.tables import evaluation_examples, verdicts

GONE = (CheckpointState.QUARANTINED, CheckpointState.RETIRED)
VERDICT_STATE = {
    Outcome.PASS: CheckpointState.ACCEPTED,
    Outcome.REGRESSED: CheckpointState.QUARANTINED,
}
VERDICT_ALERT = {
    Outcome.WATCH: AlertLevel.WARNING,
    Outcome.UNKNOWN: AlertLevel.WARNING,
    Outcome.REGRESSED: AlertLevel.CRITICAL,
}


def record_answer(
    tx: Transaction, *, answer: EvaluationAnswer, summary: EvaluationSummary | None, actor: str
) -> Evaluation | None:
    """Save an evaluation's examples and means; None where it was answered before.

    An answer with a problem ends the evaluation as `failed`, with no examples and no means.
    """
    evaluation = tx.get(Evaluation, answer.evaluation_id)
    if evaluation.state is EvaluationState.ANSWERED:
        return None
    if answer.problem or summary is None:
        return fail_evaluation(
            tx, evaluation, problem=answer.problem or "no examples", host=answer.host, actor=actor
        )
    examples = [example.model_dump(mode="json") for example in answer.examples]
    tx.connection.execute(insert(evaluation_examples).values(evaluation_id=evaluation.id, examples=examples))
    return tx.transition(
        evaluation,
        to=EvaluationState.ANSWERED,
        actor=actor,
        reason=f"{len(answer.examples)} examples from {answer.host}, {answer.num_kept} of them kept before",
        summary=summary,
        host=answer.host,
        problem="",
        answered_at=answer.finished_at,
        duration_seconds=max(0.0, (answer.finished_at - answer.started_at).total_seconds()),
    )


def note_deferral(tx: Transaction, *, deferral: EvaluationDeferral) -> None:
    """Keep why an evaluation waits, for those who look; nothing where it is answered by now."""
    evaluation = tx.seek(Evaluation, deferral.evaluation_id)
    if evaluation is not None and evaluation.state is EvaluationState.REQUESTED:
        tx.update(evaluation, problem=f"waits on {deferral.host}: {deferral.reason}", host=deferral.host)


def prune(tx: Transaction, *, actor: str) -> list[Evaluation]:
    """Give up the questions about checkpoints that are gone: nobody needs the answer any more."""
    pruned = []
    for evaluation in tx.find(Evaluation, state=EvaluationState.REQUESTED):
        checkpoint = tx.get(Checkpoint, evaluation.checkpoint_id)
        if checkpoint.state in GONE:
            problem = f"its checkpoint is {checkpoint.state}"
            fail_evaluation(tx, evaluation, problem=problem, host="", actor=actor)
            pruned.append(evaluation)
    return pruned


def fail_evaluation(
    tx: Transaction, evaluation: Evaluation, *, problem: str, host: str, actor: str
) -> Evaluation | None:
    """End an evaluation without an answer; None where it failed before."""
    if evaluation.state is EvaluationState.FAILED:
        return None
    return tx.transition(
        evaluation, to=EvaluationState.FAILED, actor=actor, reason=problem, problem=problem, host=host
    )


def examples_of(tx: Transaction, *, evaluation_id: str) -> tuple[ExampleResult, ...]:
    """Every example of an answered evaluation; empty where there is none."""
    table = evaluation_examples
    query = select(table.c.examples).where(table.c.evaluation_id == evaluation_id)
    stored = tx.connection.execute(query).scalar()
    return tuple(ExampleResult.model_validate(example) for example in stored or ())


def picked_examples(tx: Transaction, *, evaluation_id: str, limit: int) -> list[ExampleResult]:
    """A few examples, always of the same rows: those whose ids have the smallest hash."""
    table = evaluation_examples
    query = select(table.c.examples).where(table.c.evaluation_id == evaluation_id)
    stored = tx.connection.execute(query).scalar() or ()
    picked = heapq.nsmallest(limit, stored, key=lambda example: sha256_text(example["row_id"]))
    return [ExampleResult.model_validate(example) for example in picked]


def record_verdict(tx: Transaction, *, verdict: Verdict, actor: str) -> Verdict | None:
    """Save a verdict, move its checkpoint and raise its alert; None where it was recorded before.

    `pass` accepts, `regressed` quarantines, `watch` and `unknown` leave a candidate: blocked.
    """
    if tx.seek(Verdict, verdict.id) is not None:
        return None
    reason = f"{verdict.outcome}: " + " ".join(verdict.reasons)
    tx.add(verdict, actor=actor, reason=reason)
    to = VERDICT_STATE.get(verdict.outcome)
    checkpoint = tx.get(Checkpoint, verdict.checkpoint_id)
    if to is not None and checkpoint.state is CheckpointState.CANDIDATE:
        tx.transition(checkpoint, to=to, actor=actor, reason=reason)
    level = VERDICT_ALERT.get(verdict.outcome)
    if level is not None:
        raise_alert(
            tx,
            source=AlertSource.REGRESSION,
            level=level,
            checkpoint_id=verdict.checkpoint_id,
            suite_id=verdict.suite_id,
            message=reason,
            actor=actor,
        )
    return verdict


def verdict_counts(tx: Transaction) -> Counter[Outcome]:
    """How many verdicts of each outcome there are, on whichever suite."""
    query = select(verdicts.c.outcome, func.count()).group_by(verdicts.c.outcome)
    return Counter({Outcome(outcome): count for outcome, count in tx.connection.execute(query)})


def first_anchor(tx: Transaction, *, suite_id: str) -> Evaluation | None:
    """The evaluation of the first baseline that a verdict on this suite was held against."""
    table = verdicts
    query = select(table.c.baseline_evaluation_id).where(
        table.c.suite_id == suite_id, table.c.baseline_evaluation_id.is_not(None)
    )
    found = tx.connection.execute(query.order_by(table.c.decided_at, table.c.id).limit(1)).scalar()
    return None if found is None else tx.seek(Evaluation, found)


def record_calibration(tx: Transaction, *, calibration: Calibration, actor: str) -> Calibration | None:
    """Save a calibration; None where its evaluation was calibrated before."""
    if tx.seek(Calibration, calibration.id) is not None:
        return None
    tx.add(calibration, actor=actor, reason=f"{calibration.outcome}: {calibration.reason}")
    return calibration
