"""Builders of answered evaluations for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intelligence.summary import summarise
from registry import judgements
from registry.messages import EvaluationAnswer
from registry.records import ExampleResult
from registry.states import CheckpointState
from registry.store import Transaction
from registry.testing import START, make_checkpoint, make_evaluation, make_example


def add_evaluated(
    tx: Transaction, checkpoint_id: str, *, examples: Sequence[ExampleResult], **changes: Any
) -> None:
    """An accepted checkpoint with its answered evaluation on `suite-1`."""
    tx.add(make_checkpoint(id=checkpoint_id, **{"state": CheckpointState.ACCEPTED} | changes), actor="test")
    evaluation = make_evaluation(id=f"eval-{checkpoint_id}", checkpoint_id=checkpoint_id)
    tx.add(evaluation, actor="test")
    answer = EvaluationAnswer(
        evaluation_id=evaluation.id,
        checkpoint_id=checkpoint_id,
        suite_id=evaluation.suite_id,
        examples=tuple(examples),
        host="intel",
        started_at=START,
        finished_at=START,
    )
    judgements.record_answer(tx, answer=answer, summary=summarise(examples), actor="test")


def right_on(num_correct: int, *, num_rows: int = 40, loss: float = 0.5) -> tuple[ExampleResult, ...]:
    """Answers to the same rows, of which the first so many are right."""
    return tuple(
        make_example(
            row_id=f"row-{place:03}",
            is_correct=place < num_correct,
            answer="abc" if place < num_correct else "cba",
            loss=loss,
        )
        for place in range(num_rows)
    )
