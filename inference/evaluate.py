"""Put every row of a validation suite to a checkpoint: the worker's entry point.

Importing this module loads torch; a Celery worker imports it inside the job, not before.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from inference.answering import answers
from inference.batches import DEFAULT_LIMITS, BatchLimits
from inference.errors import EvaluationStopped, ModelError
from inference.kept import KeptAnswers, Said, question_key
from inference.model import LoadedModel, load_model
from inference.prompts import EncodedRow, encode_row
from inference.scoring import too_long
from registry.errors import DatasetError, ProfileError, TandemError
from registry.files import sha256_file
from registry.judging import DEFAULT_SCORER, Judge, Judgement, same_text
from registry.messages import ArtifactReference, EvaluationAnswer, EvaluationRequest
from registry.profiles.base import Profile, expected_answer
from registry.records import TEMPERATURES, ExampleResult, GenerationSettings
from registry.rows import ChatRow, read_rows

# So much is lost to a kill at most.
CHUNK_ROWS = 128
ShouldStop = Callable[[], bool]
UNUSABLE_WEIGHTS = "the model's weights hold NaN or infinity"


def evaluate(
    request: EvaluationRequest,
    *,
    host: str,
    clock: Callable[[], datetime],
    limits: BatchLimits = DEFAULT_LIMITS,
    judge: Judge = same_text,
    keep_in: Path | None = None,
    should_stop: ShouldStop = lambda: False,
) -> EvaluationAnswer:
    """Score and generate for every row of the suite, with what `request` names, verified by content.

    With `keep_in`, what the model says is kept there as it comes, and taken from there where this very
    question was asked before, to the end or until a kill. The answer has a result for every row, or none and
    the problem. Raises `EvaluationStopped` where `should_stop` says so. The model's memory is free then.
    """
    started_at = clock()
    examples: tuple[ExampleResult, ...] = ()
    problem, num_kept = "", 0
    try:
        examples, num_kept = _run(
            request, limits=limits, judge=judge, keep_in=keep_in, should_stop=should_stop
        )
    except EvaluationStopped:
        raise
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
        num_kept=num_kept,
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
    kept: KeptAnswers | None = None,
    should_stop: ShouldStop = lambda: False,
) -> tuple[ExampleResult, ...]:
    """A result for every row, in order. A row whose numbers could not be had says why in `problem`."""
    if not loaded.has_finite_weights:
        return tuple(_unanswered(row, problem=UNUSABLE_WEIGHTS) for row in rows)
    problems = [_unfit(loaded.profile, row) for row in rows]
    fit = [row for row, problem in zip(rows, problems, strict=True) if not problem]
    said = _ask(loaded, fit, settings=settings, limits=limits, kept=kept, should_stop=should_stop)
    return tuple(
        _unanswered(row, problem=problem)
        if problem
        else _example(row, said=said[row.content_id], profile=loaded.profile, judge=judge)
        for row, problem in zip(rows, problems, strict=True)
    )


def _ask(
    loaded: LoadedModel,
    rows: Sequence[ChatRow],
    *,
    settings: GenerationSettings,
    limits: BatchLimits,
    kept: KeptAnswers | None,
    should_stop: ShouldStop,
) -> dict[str, Said]:
    """What the model says to each row, by row id; kept as it comes, so many rows at a time."""
    loaded = replace(loaded, confidence_temperatures=TEMPERATURES)
    encoded = {row.content_id: encode_row(loaded, row) for row in rows}
    said = {} if kept is None else {key: one for key, one in kept.load().items() if key in encoded}
    fresh: dict[str, Said] = {}
    missing = {key: row for key, row in encoded.items() if key not in said}
    for key, one in _said(loaded, missing, settings=settings, limits=limits):
        fresh[key] = one
        stops = should_stop()
        if kept is not None and (stops or len(fresh) >= CHUNK_ROWS):
            kept.add(fresh)
            said, fresh = said | fresh, {}
        if stops:
            raise _stopped(len(said | fresh), of=len(encoded))
    if kept is not None and fresh:
        kept.add(fresh)
    return said | fresh


def _stopped(num_rows: int, *, of: int) -> EvaluationStopped:
    return EvaluationStopped(f"The worker was told to stop, with {num_rows} of {of} rows answered.")


def _said(
    loaded: LoadedModel, rows: Mapping[str, EncodedRow], *, settings: GenerationSettings, limits: BatchLimits
) -> Iterator[tuple[str, Said]]:
    """A row whose prompt leaves no position for a reply has none."""
    fitting = [key for key, row in rows.items() if len(row.prompt) < loaded.max_positions]
    for key, row in rows.items():
        if key not in fitting and (unknown := too_long(loaded, row)):
            yield key, Said(score=unknown, reply=None)
    for one in answers(loaded, [rows[key] for key in fitting], settings=settings, limits=limits):
        yield fitting[one.place], Said(score=one.score, reply=one.reply)


def _unfit(profile: Profile, row: ChatRow) -> str:
    """Why the model's profile has no form for a row; empty where it has."""
    try:
        expected_answer(profile, row)
    except ProfileError as error:
        return f"not for profile {profile.name}: {error.message}"
    return ""


def _run(
    request: EvaluationRequest,
    *,
    limits: BatchLimits,
    judge: Judge,
    keep_in: Path | None,
    should_stop: ShouldStop,
) -> tuple[tuple[ExampleResult, ...], int]:
    """Every row's result, and how many of them were taken from an earlier pass."""
    rows = _suite_rows(request.suite)
    if should_stop():  # before the model is loaded, which takes a while
        raise _stopped(0, of=len(rows))
    loaded = load_model(
        Path(request.model.path),
        device=request.device,
        num_threads=request.num_threads,
        expected_sha256=request.model.sha256,
    )
    kept = _kept(loaded, request=request, directory=keep_in)
    known = set() if kept is None else set(kept.load())
    examples = evaluate_rows(
        loaded,
        rows,
        settings=request.settings,
        limits=limits,
        judge=judge,
        kept=kept,
        should_stop=should_stop,
    )
    if kept is not None:
        kept.forget_older()
    return examples, sum(row.content_id in known for row in rows)


def _kept(loaded: LoadedModel, *, request: EvaluationRequest, directory: Path | None) -> KeptAnswers | None:
    key = question_key(loaded, suite_sha256=request.suite.sha256, settings=request.settings)
    return None if directory is None or key is None else KeptAnswers(directory, key=key)


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


def _example(row: ChatRow, *, said: Said, profile: Profile, judge: Judge) -> ExampleResult:
    scored, reply = said.score, said.reply
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
