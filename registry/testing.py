"""Builders of valid records for tests: say what matters, the rest has a value."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from registry import queue
from registry.calibrations import Calibration, CalibrationMap, CalibrationOutcome, MapKind
from registry.messages import Evidence
from registry.model_shapes import ModelShape
from registry.records import (
    Checkpoint,
    Dataset,
    Deployment,
    Estimate,
    Evaluation,
    ExampleResult,
    GenerationSettings,
    Lead,
    Ranking,
    RankingEntry,
    Suite,
    TrainingJob,
)
from registry.schema import upgrade
from registry.states import CheckpointState, DeploymentState, EvaluationState, JobState, Priority
from registry.store import Registry, Transaction

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SHA = "0" * 64


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


def make_registry(directory: Path, *, clock: ManualClock | None = None) -> Registry:
    """A real SQLite registry, migrated, on a manual clock."""
    registry = Registry(f"sqlite:///{directory / 'tandem.db'}", clock=clock or ManualClock())
    upgrade(registry)
    return registry


def make_shape(**changes: Any) -> ModelShape:
    """That of Qwen3-0.6B."""
    fields: dict[str, Any] = {
        "num_parameters": 596_049_920,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_layers": 28,
        "num_heads": 16,
        "num_key_value_heads": 8,
        "head_size": 128,
        "vocab_size": 151_936,
    }
    return ModelShape.model_validate({**fields, **changes})


def make_dataset(**changes: Any) -> Dataset:
    """A dataset of ten rows."""
    fields: dict[str, Any] = {
        "id": "ds-1",
        "name": "words",
        "content_sha256": SHA,
        "path": "words.jsonl",
        "num_rows": 10,
        "num_bytes": 100,
        "created_at": START,
    }
    return Dataset.model_validate(fields | changes)


def make_job(**changes: Any) -> TrainingJob:
    """A submitted job on dataset `ds-1`."""
    fields: dict[str, Any] = {
        "id": "job-aaaaaa",
        "name": "words",
        "state": JobState.SUBMITTED,
        "priority": Priority.NORMAL,
        "dataset_id": "ds-1",
        "submitted_by": "test",
        "submitted_at": START,
    }
    merged = fields | changes
    return TrainingJob.model_validate({"dedupe_key": merged["id"], **merged})


def make_checkpoint(**changes: Any) -> Checkpoint:
    """A complete trained checkpoint of no job."""
    fields: dict[str, Any] = {
        "id": "ckpt-aaaaaa-00000010",
        "state": CheckpointState.COMPLETE,
        "origin": "trained",
        "step": 10,
        "path": "models/checkpoints/a",
        "weights_sha256": SHA,
        "created_at": START,
    }
    return Checkpoint.model_validate(fields | changes)


def make_deployment(**changes: Any) -> Deployment:
    """What is served since the beginning."""
    fields: dict[str, Any] = {
        "id": "r000001-aaaaaaaa",
        "generation": 1,
        "checkpoint_id": "ckpt-aaaaaa-00000010",
        "state": DeploymentState.ACTIVE,
        "weights_sha256": SHA,
        "reason": "test",
        "started_at": START,
        "activated_at": START,
    }
    return Deployment.model_validate(fields | changes)


def make_suite(**changes: Any) -> Suite:
    """An active suite of three rows."""
    fields: dict[str, Any] = {
        "id": "suite-1",
        "name": "validation",
        "content_sha256": SHA,
        "path": "suite.jsonl",
        "num_rows": 3,
        "num_by_difficulty": {"easy": 3},
        "is_active": True,
        "created_at": START,
    }
    return Suite.model_validate(fields | changes)


def make_evaluation(**changes: Any) -> Evaluation:
    """A requested evaluation of the default checkpoint on the default suite."""
    fields: dict[str, Any] = {
        "id": "eval-1",
        "checkpoint_id": "ckpt-aaaaaa-00000010",
        "suite_id": "suite-1",
        "state": EvaluationState.REQUESTED,
        "settings": GenerationSettings(),
        "requested_at": START,
    }
    return Evaluation.model_validate(fields | changes)


def make_ranking(*names: str, **changes: Any) -> Ranking:
    """These checkpoints, best first, each 0.1 behind the one before."""
    estimate = Estimate(value=0.5, low=0.4, high=0.6, num_samples=40)
    difference = Estimate(value=0.1, low=0.05, high=0.15, num_samples=40)
    lead = Lead(difference=difference, standard_error=0.02, p_value=0.01)
    entries = tuple(
        RankingEntry(
            rank=place,
            checkpoint_id=name,
            evaluation_id=f"eval-{name}",
            score=Estimate(value=1 - place / 10, low=0.0, high=1.0, num_samples=40),
            loss=estimate,
            accuracy=estimate,
            terms={},
            is_tied_with_best=place == 1,
            is_on_front=place == 1,
            lead=lead if place < len(names) else None,
        )
        for place, name in enumerate(names, start=1)
    )
    fields: dict[str, Any] = {
        "id": "rank-1",
        "suite_id": "suite-1",
        "evidence_sha256": SHA,
        "entries": entries,
        "weights": {"loss": 0.5, "accuracy": 0.5},
        "num_eligible": len(names),
        "made_at": START,
    }
    return Ranking.model_validate(fields | changes)


def make_calibration(**changes: Any) -> Calibration:
    """A known calibration of the default evaluation, without a map."""
    fields: dict[str, Any] = {
        "id": "cal-1",
        "checkpoint_id": "ckpt-aaaaaa-00000010",
        "suite_id": "suite-1",
        "evaluation_id": "eval-1",
        "outcome": CalibrationOutcome.UNNEEDED,
        "reason": "No map is better.",
        "num_examples": 200,
        "num_held_out": 100,
        "map": CalibrationMap(kind=MapKind.IDENTITY, num_fitted=100),
        "settings": GenerationSettings(),
        "decided_at": START,
    }
    return Calibration.model_validate(fields | changes)


def make_example(**changes: Any) -> ExampleResult:
    """A correct answer with loss 0.5."""
    fields: dict[str, Any] = {
        "row_id": "row-1",
        "difficulty": "easy",
        "expected": "abc",
        "answer": "abc",
        "is_correct": True,
        "loss": 0.5,
        "num_answer_tokens": 4,
        "confidence": 0.9,
        "finish_reason": "stop",
    }
    return ExampleResult.model_validate(fields | changes)


def make_evidence(
    name: str, *, losses: Sequence[float], correct: Sequence[bool] | None = None, **columns: Sequence[Any]
) -> Evidence:
    """A checkpoint's answers with these losses, row by row; `columns` are fields of an example."""
    flags = [True] * len(losses) if correct is None else correct
    examples = tuple(
        make_example(
            row_id=f"row-{place:04d}",
            loss=float(loss),
            is_correct=bool(flags[place]),
            **{field: values[place] for field, values in columns.items()},
        )
        for place, loss in enumerate(losses)
    )
    return Evidence(checkpoint_id=name, evaluation_id=f"eval-{name}", suite_id="suite-1", examples=examples)


def add_queued_job(tx: Transaction, **changes: Any) -> TrainingJob:
    """A job in its queue, with its dataset."""
    if tx.seek(Dataset, "ds-1") is None:
        tx.add(make_dataset(), actor="test")
    job, _ = queue.submit(tx, make_job(**changes), actor="test")
    return job
