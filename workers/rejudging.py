"""Judge a stored evaluation anew: from the replies that were kept, without a model. Changes nothing."""

from __future__ import annotations

from pathlib import Path

from intelligence import scorers
from intelligence.errors import IntelligenceError
from intelligence.summary import summarise
from registry import judgements, lineage
from registry.errors import DatasetError, NotFound
from registry.files import sha256_file
from registry.records import EvaluationSummary, ExampleResult, Record, Suite
from registry.rows import ChatRow, read_rows
from registry.store import Registry


class Rejudgement(Record):
    """What the scorers say now of replies that were judged before; `differing` as they are judged now."""

    checkpoint_id: str
    evaluation_id: str
    suite_id: str
    before: EvaluationSummary
    now: EvaluationSummary
    differing: tuple[ExampleResult, ...]


def rejudge(registry: Registry, *, checkpoint_id: str, scorer: str = "") -> Rejudgement:
    """The checkpoint's replies to the active suite, by its rows' scorers or all by the named one.

    Raises `NotFound` without a suite or an answered evaluation, `DatasetError` where the suite's file is no
    longer what it was, `UnknownScorer` with the list of names.
    """
    if scorer:
        scorers.find(scorer)
    with registry.reading() as tx:
        suite = lineage.active_suite(tx)
        if suite is None:
            raise NotFound("No suite is active.", remedy="`tandem suite build FILE` makes one.")
        evaluation = lineage.answered_evaluation(tx, checkpoint_id=checkpoint_id, suite_id=suite.id)
        if evaluation is None:
            raise NotFound(f"{checkpoint_id} has no answered evaluation on {suite.name} ({suite.id}).")
        examples = judgements.examples_of(tx, evaluation_id=evaluation.id)
    rows = _rows_of(suite, scorer=scorer)
    judged = [_judged(example, rows=rows) for example in examples]
    return Rejudgement(
        checkpoint_id=checkpoint_id,
        evaluation_id=evaluation.id,
        suite_id=suite.id,
        before=summarise(examples),
        now=summarise(judged),
        differing=tuple(
            new
            for old, new in zip(examples, judged, strict=True)
            if (old.is_correct, old.problem) != (new.is_correct, new.problem)
        ),
    )


def _rows_of(suite: Suite, *, scorer: str) -> dict[str, ChatRow]:
    path = Path(suite.path)
    if not path.is_file() or sha256_file(path) != suite.content_sha256:
        raise DatasetError(
            f"The suite's file {path} is missing or was changed.", remedy="Build the suite again."
        )
    return {row.content_id: row.changed(scorer=scorer or row.scorer) for row in read_rows(path)}


def _judged(example: ExampleResult, *, rows: dict[str, ChatRow]) -> ExampleResult:
    if example.row_id not in rows:
        raise IntelligenceError(f"Example {example.row_id!r} is no row of the suite: it cannot be judged.")
    return scorers.rejudged(example, row=rows[example.row_id])
