"""Doors of evaluation: run on an intelligence host, record beside the registry."""

from __future__ import annotations

from intelligence import scorers
from intelligence.summary import summarise
from registry import asks, judgements
from registry.messages import EvaluationAnswer, EvaluationDeferral, EvaluationRequest
from tasks.door import door
from workers import admission, projections
from workers.context import Context, Message
from workers.pipeline import owed


@door("evaluation.run")
def run(request: EvaluationRequest, context: Context) -> None:
    """Score and generate the whole suite with one checkpoint; send the answer home."""
    from inference.evaluate import evaluate  # loads torch: only the worker that evaluates pays

    with admission.to_evaluate(context, request) as obstacle:
        if obstacle:
            deferral = EvaluationDeferral(
                evaluation_id=request.evaluation_id, reason=obstacle, host=context.host
            )
            context.deliver(Message("evaluation.defer", deferral))
            return
        answer = evaluate(request, host=context.host, clock=context.registry.clock, judge=scorers.judge)
    context.deliver(Message("evaluation.record", answer))


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
    projections.refresh(context.registry, settings=context.settings)
