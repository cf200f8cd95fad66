"""What a status says beside the run itself: how fast the queue moves, how far off earlier ETAs were, and what
the newest evaluated checkpoint answers.

Nothing runs a model for it: an evaluation holds every answer that was generated on the intelligence host.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

from registry import history, judgements, lineage
from registry.errors import DatasetError
from registry.progress import EndPrediction, EtaError, Preview, QueueVelocity
from registry.records import Checkpoint, Evaluation, ExampleResult, Suite
from registry.rows import ChatRow, read_rows
from registry.store import Registry, Transaction

VELOCITY_HOURS = 6.0
MAX_PAST_JOBS = 50
NUM_PROMPTS = 8
SECONDS_A_PROMPT = 10.0
MAX_CHARACTERS = 500

NO_EVALUATION = "no checkpoint was evaluated yet"
NO_SUBMISSION = "no job was ever submitted"
NOT_READ = "it was not looked up"


@dataclass(frozen=True)
class Surroundings:
    """At one moment. Each that is None has its reason."""

    preview: Preview | None = None
    preview_unknown_because: str = NOT_READ
    velocity: QueueVelocity | None = None
    velocity_unknown_because: str = NOT_READ
    eta_errors: tuple[EtaError, ...] = ()


def read_surroundings(registry: Registry, *, job_id: str | None = None) -> Surroundings:
    """From the registry and, once it is closed, the suite's file. Checkpoints of that job come first."""
    with registry.reading() as tx:
        now, velocity = tx.now, queue_velocity(tx)
        errors = eta_errors(history.kept_predictions(tx, limit=MAX_PAST_JOBS))
        shown = _shown(tx, job_id=job_id)
    preview, reason = (None, NO_EVALUATION) if shown is None else _preview(shown, now=now)
    return Surroundings(
        preview=preview,
        preview_unknown_because=reason,
        velocity=velocity,
        velocity_unknown_because=NO_SUBMISSION if velocity is None else "",
        eta_errors=errors,
    )


def queue_velocity(tx: Transaction) -> QueueVelocity | None:
    """Over the last six hours, or since the first submission where that is later; None before it."""
    first = history.first_submission(tx)
    if first is None:
        return None
    begin = max(first, tx.now - timedelta(hours=VELOCITY_HOURS))
    hours = max((tx.now - begin).total_seconds(), 1.0) / 3600
    rows = history.finished_work(tx, since=begin)
    low, high = poisson_interval(len(rows))
    return QueueVelocity(
        hours=hours,
        num_jobs=len(rows),
        num_rows=sum(rows),
        jobs_per_hour=len(rows) / hours,
        jobs_per_hour_low=low / hours,
        jobs_per_hour_high=high / hours,
        rows_per_hour=sum(rows) / hours,
    )


def poisson_interval(count: int) -> tuple[float, float]:
    """95 % of the mean of a Poisson count: Byar's approximation (Breslow & Day 1987, eq. 2.13)."""
    above = count + 1
    high = above * (1 - 1 / (9 * above) + 1.96 / (3 * math.sqrt(above))) ** 3
    low = count * (1 - 1 / (9 * count) - 1.96 / (3 * math.sqrt(count))) ** 3 if count else 0.0
    return max(0.0, low), high


def eta_errors(predictions: Sequence[tuple[EndPrediction, float]]) -> tuple[EtaError, ...]:
    """By share of the run at which they were made; each prediction with the seconds that it took."""
    by_share: dict[float, list[tuple[EndPrediction, float]]] = defaultdict(list)
    for prediction, seconds in predictions:
        if seconds > 0:
            by_share[prediction.share].append((prediction, seconds))
    return tuple(_eta_error(share, found) for share, found in sorted(by_share.items()))


@lru_cache(maxsize=64)
def prompts_of(suite: Path, row_ids: tuple[str, ...]) -> dict[str, str]:
    """What these rows of a suite ask. A suite's file is named by its content, so it never changes."""
    wanted = set(row_ids)
    return {row.content_id: _prompt(row) for row in read_rows(suite) if row.content_id in wanted}


@dataclass(frozen=True)
class _Shown:
    checkpoint: Checkpoint
    evaluation: Evaluation
    suite: Suite
    examples: tuple[ExampleResult, ...]


def _shown(tx: Transaction, *, job_id: str | None) -> _Shown | None:
    evaluation = lineage.newest_evaluation(tx, job_id=job_id)
    if evaluation is None:
        return None
    examples = judgements.picked_examples(tx, evaluation_id=evaluation.id, limit=NUM_PROMPTS)
    return _Shown(
        checkpoint=tx.get(Checkpoint, evaluation.checkpoint_id),
        evaluation=evaluation,
        suite=tx.get(Suite, evaluation.suite_id),
        examples=tuple(examples),
    )


def _preview(shown: _Shown, *, now: datetime) -> tuple[Preview | None, str]:
    """One of a few fixed prompts, the next one every ten seconds."""
    try:
        prompts = prompts_of(Path(shown.suite.path), tuple(example.row_id for example in shown.examples))
    except DatasetError as error:
        return None, f"the suite {shown.suite.id} cannot be read: {error.message}"
    known = [example for example in shown.examples if example.row_id in prompts]
    if not known:
        return None, f"the suite {shown.suite.id} has none of the rows that {shown.evaluation.id} answered"
    example = known[int(now.timestamp() / SECONDS_A_PROMPT) % len(known)]
    answered_at = shown.evaluation.answered_at or shown.evaluation.requested_at
    preview = Preview(
        prompt=prompts[example.row_id],
        golden_answer=example.expected[:MAX_CHARACTERS],
        reply=example.answer[:MAX_CHARACTERS],
        is_correct=example.is_correct,
        checkpoint_id=shown.checkpoint.id,
        step=shown.checkpoint.step,
        job_id=shown.checkpoint.job_id,
        answered_at=answered_at,
        age_seconds=max(0.0, (now - answered_at).total_seconds()),
    )
    return preview, ""


def _prompt(row: ChatRow) -> str:
    turns = row.prompt
    if len(turns) == 1:
        return turns[0].content[:MAX_CHARACTERS]
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)[-MAX_CHARACTERS:]


def _eta_error(share: float, found: Sequence[tuple[EndPrediction, float]]) -> EtaError:
    relative = [prediction.seconds / seconds - 1 for prediction, seconds in found]
    intervals = [
        (prediction.low_seconds, seconds, prediction.high_seconds)
        for prediction, seconds in found
        if prediction.low_seconds is not None and prediction.high_seconds is not None
    ]
    return EtaError(
        share=share,
        median_relative_error=statistics.median(abs(error) for error in relative),
        median_bias=statistics.median(relative),
        num_jobs=len(found),
        num_with_interval=len(intervals),
        num_inside=sum(low <= seconds <= high for low, seconds, high in intervals),
    )
