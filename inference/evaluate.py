"""Put every row of a validation suite to a checkpoint: the worker's entry point.

Importing this module loads torch; a Celery worker imports it inside the job, not before.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from inference.batches import DEFAULT_LIMITS, BatchLimits
from inference.errors import ModelError
from inference.generation import Generated, generate
from inference.model import LoadedModel, load_model
from inference.prompts import encode_row
from inference.scoring import Score, score
from registry.errors import DatasetError, ProfileError, TandemError
from registry.files import sha256_file
from registry.judging import DEFAULT_SCORER, Judge, Judgement, same_text
from registry.messages import ArtifactReference, EvaluationAnswer, EvaluationRequest
from registry.profiles.base import Profile, expected_answer
from registry.records import TEMPERATURES, ExampleResult, GenerationSettings
from registry.rows import ChatRow, read_rows

UNUSABLE_WEIGHTS = "the model's weights hold NaN or infinity"


def evaluate(
    request: EvaluationRequest,
    *,
    host: str,
    clock: Callable[[], datetime],
    limits: BatchLimits = DEFAULT_LIMITS,
    judge: Judge = same_text,
) -> EvaluationAnswer:
    """Score and generate for every row of the suite, with what `request` names, verified by content.

    The answer has a result for every row, or none and the problem that prevented it. The model's memory
    is free again on return.
    """
    started_at = clock()
    examples: tuple[ExampleResult, ...] = ()
    problem = ""
    try:
        examples = _run(request, limits=limits, judge=judge)
    except (TandemError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        _free_memory()
    return EvaluationAnswer(
        evaluation_id=request.evaluation_id,
        checkpoint_id=request.checkpoint_id,
        suite_id=request.suite_id,
        examples=examples,
        problem=problem,
        host=host,
        started_at=started_at,
        finished_at=clock(),
    )


def evaluate_rows(
    loaded: LoadedModel,
    rows: Sequence[ChatRow],
    *,
    settings: GenerationSettings,
    limits: BatchLimits = DEFAULT_LIMITS,
    judge: Judge = same_text,
) -> tuple[ExampleResult, ...]:
    """A result for every row, in order. A row whose numbers could not be had says why in `problem`."""
    if not loaded.has_finite_weights:
        return tuple(_unanswered(row, problem=UNUSABLE_WEIGHTS) for row in rows)
    problems = [_unfit(loaded.profile, row) for row in rows]
    fit = [row for row, problem in zip(rows, problems, strict=True) if not problem]
    answered = iter(_evaluate_fit(loaded, fit, settings=settings, limits=limits, judge=judge))
    return tuple(
        _unanswered(row, problem=problem) if problem else next(answered)
        for row, problem in zip(rows, problems, strict=True)
    )


def _evaluate_fit(
    loaded: LoadedModel,
    rows: Sequence[ChatRow],
    *,
    settings: GenerationSettings,
    limits: BatchLimits,
    judge: Judge,
) -> tuple[ExampleResult, ...]:
    loaded = replace(loaded, confidence_temperatures=TEMPERATURES)
    encoded = [encode_row(loaded, row) for row in rows]
    scores = score(loaded, encoded, limits=limits)
    fitting = [place for place, row in enumerate(encoded) if len(row.prompt) < loaded.max_positions]
    replies = generate(loaded, [encoded[place].prompt for place in fitting], settings=settings, limits=limits)
    by_place = dict(zip(fitting, replies, strict=True))
    return tuple(
        _example(row, scored=scores[place], reply=by_place.get(place), profile=loaded.profile, judge=judge)
        for place, row in enumerate(rows)
    )


def _unfit(profile: Profile, row: ChatRow) -> str:
    """Why the model's profile has no form for a row; empty where it has."""
    try:
        expected_answer(profile, row)
    except ProfileError as error:
        return f"not for profile {profile.name}: {error.message}"
    return ""


def _run(request: EvaluationRequest, *, limits: BatchLimits, judge: Judge) -> tuple[ExampleResult, ...]:
    rows = _suite_rows(request.suite)
    loaded = load_model(
        Path(request.model.path),
        device=request.device,
        num_threads=request.num_threads,
        expected_sha256=request.model.sha256,
    )
    return evaluate_rows(loaded, rows, settings=request.settings, limits=limits, judge=judge)


def _suite_rows(suite: ArtifactReference) -> list[ChatRow]:
    path = Path(suite.path)
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        raise DatasetError(
            f"The suite {path} cannot be read: {error.strerror}.",
            remedy="Check that it was copied to this host.",
        ) from None
    if sha256 != suite.sha256:
        raise DatasetError(
            f"The suite {path} has sha256 {sha256[:12]}, not {suite.sha256[:12]} as asked.",
            remedy="Copy the suite again.",
        )
    rows = list(read_rows(path))
    row_id, num_rows = Counter(row.content_id for row in rows).most_common(1)[0]
    if num_rows > 1:
        # Results are paired by row id: a repeated one would be compared with itself or lost.
        raise DatasetError(
            f"The suite {path} has {num_rows} rows with id {row_id!r}.",
            remedy="Remove the repeated rows, or give them ids of their own.",
        )
    return rows


def _example(
    row: ChatRow, *, scored: Score, reply: Generated | None, profile: Profile, judge: Judge
) -> ExampleResult:
    if reply is None:
        return _unanswered(row, problem=scored.problem)
    problems = [scored.problem] if scored.problem else []
    if reply.finish_reason == "error":
        problems.append("the model's logits were not finite while it answered")
    expected, answer = expected_answer(profile, row), profile.plain_answer(reply.text)
    # A reply that was cut off, or that is not in the profile's form, is no answer, even if it seems right.
    is_answer = reply.finish_reason == "stop" and answer is not None
    asked = row.answered_by(expected)
    judgement = judge(asked, answer or "") if is_answer else Judgement(is_correct=False)
    if judgement.problem:
        problems.append(judgement.problem)
    return ExampleResult(
        row_id=row.content_id,
        difficulty=row.difficulty,
        tags=row.tags,
        cluster=row.cluster,
        expected=expected,
        # A reply that is not in the profile's form is shown as it came.
        answer=reply.text if answer is None else answer,
        is_correct=judgement.is_correct and not problems,
        scorer=row.scorer or DEFAULT_SCORER,
        loss=scored.loss,
        num_answer_tokens=scored.num_tokens,
        confidence=reply.confidence,
        # Six digits: a thousand rows travel in one message.
        tempered_logprobs=tuple(float(f"{value:.6g}") for value in reply.tempered_logprobs),
        finish_reason=reply.finish_reason,
        problem="; ".join(problems),
    )


def _unanswered(row: ChatRow, *, problem: str) -> ExampleResult:
    if not problem:
        raise ModelError(f"Row {row.content_id} has no answer and no reason for it.")
    return ExampleResult(
        row_id=row.content_id,
        difficulty=row.difficulty,
        tags=row.tags,
        cluster=row.cluster,
        expected=row.expected,
        answer="",
        is_correct=False,
        scorer=row.scorer or DEFAULT_SCORER,
        loss=None,
        num_answer_tokens=0,
        confidence=None,
        finish_reason="error",
        problem=problem,
    )


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
