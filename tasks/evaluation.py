"""Doors of evaluation: run on an intelligence host, record beside the registry."""

from __future__ import annotations

from inference.errors import EvaluationStopped
from intelligence import scorers
from intelligence.summary import summarise
from registry import asks, judgements
from registry.messages import EvaluationAnswer, EvaluationDeferral, EvaluationNeed, EvaluationRequest
from tasks.door import door
from workers import admission, candidates, evidence, projections
from workers.context import Context, Message
from workers.pipeline import owed, wanted
from workers.shutdown import is_stopping


@door("evaluation.send")
def send(request: EvaluationRequest, context: Context) -> None:
    """Bring model and suite to the host that evaluates, once; then ask for it by content."""
    with context.holding(candidates.RESOURCE) as lease:
        problem = "another candidate is being sent"
        if lease is not None:
            problem = candidates.send(request, settings=context.settings)
    if problem:
        return _put_off(context, request, reason=problem)
    return context.ring([Message("evaluation.run", candidates.by_content(request))])


@door("evaluation.fetch")
def fetch(need: EvaluationNeed, context: Context) -> None:
    """Bring model and suite to the one host that took the evaluation and waits for them."""
    with context.registry.transaction() as tx:
        request = wanted(tx, evaluation_id=need.evaluation_id, settings=context.settings)
        asks.renew(tx, kind="evaluation", subject_id=need.evaluation_id)
    if request is None:
        return
    with context.holding(candidates.RESOURCE) as lease:
        if lease is None:  # another candidate is being sent; the host asks again
            return
        problem = candidates.send(request, settings=context.settings, host=need.host)
    if problem:
        deferral = EvaluationDeferral(evaluation_id=need.evaluation_id, reason=problem, host=need.host)
        with context.registry.transaction() as tx:
            judgements.note_deferral(tx, deferral=deferral)


@door("evaluation.run")
def run(request: EvaluationRequest, context: Context) -> None:
    """Score and generate the whole suite with one checkpoint; send the answer home."""
    from inference.evaluate import evaluate  # loads torch: only the worker that evaluates pays

    # It does not expire: hosts may disagree about the time.
    ask = Message("evaluation.fetch", EvaluationNeed(evaluation_id=request.evaluation_id, host=context.host))
    candidates.await_arrival(request, settings=context.settings, ask=lambda: context.ring([ask]))
    with (
        candidates.at_hand(request, settings=context.settings) as (found, absence),
        admission.to_evaluate(context, found) as busy,
    ):
        if absence or busy:
            return _put_off(context, request, reason=absence or busy)
        try:
            answer = evaluate(
                found,
                host=context.host,
                clock=context.registry.clock,
                judge=scorers.judge,
                keep_in=context.settings.paths.answers,
                should_stop=is_stopping,
            )
        except EvaluationStopped as stopped:
            return _put_off(context, request, reason=stopped.message)
    return context.deliver(Message("evaluation.record", answer))


@door("evaluation.defer")
def defer(deferral: EvaluationDeferral, context: Context) -> None:
    """Keep why an evaluation waits, and have it asked again soon."""
    settings = context.settings
    with context.registry.transaction() as tx:
        judgements.note_deferral(tx, deferral=deferral)
        asks.postpone(
            tx,
            kind="evaluation",
            subject_id=deferral.evaluation_id,
            seconds=settings.guard.defer_seconds,
            retry_after_seconds=settings.evaluation.retry_after_seconds,
        )


@door("evaluation.record")
def record(answer: EvaluationAnswer, context: Context) -> None:
    """Save every example and the means, once; ask for the verdict that follows."""
    summary = None if answer.problem or not answer.examples else summarise(answer.examples)
    with context.registry.transaction() as tx:
        judgements.record_answer(tx, answer=answer, summary=summary, actor=context.actor)
        asks.settle(tx, kind="evaluation", subject_id=answer.evaluation_id)
        messages = owed(tx, settings=context.settings)
    context.ring(messages)
    evidence.refresh(context.registry, directory=context.settings.paths.evaluations)
    projections.refresh(context.registry, settings=context.settings)


def _put_off(context: Context, request: EvaluationRequest, *, reason: str) -> None:
    deferral = EvaluationDeferral(evaluation_id=request.evaluation_id, reason=reason, host=context.host)
    context.deliver(Message("evaluation.defer", deferral))
