"""Tables of the records: one column a field, nested models as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from registry.calibrations import Calibration
from registry.records import (
    Ask,
    Checkpoint,
    Dataset,
    Deployment,
    Evaluation,
    Event,
    HandledMessage,
    Host,
    Lease,
    Ranking,
    Record,
    Suite,
    TrainingJob,
    Verdict,
)
from registry.reports import AccuracyReport, Alert


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out; SQLite keeps no zone, so it is stripped and put back here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive time {value!r}: pass aware UTC")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(length: int = 64) -> Column[str]:
    return Column("id", String(length), primary_key=True)


def _reference(name: str, target: str, *, nullable: bool = True) -> Column[str]:
    return Column(name, String(64), ForeignKey(f"{target}.id"), nullable=nullable, index=True)


def _state() -> Column[str]:
    return Column("state", String(16), nullable=False, index=True)


def _text(name: str, *, nullable: bool = True, **options: Any) -> Column[str]:
    return Column(name, Text, nullable=nullable, **options)


def _time(name: str, *, nullable: bool = True) -> Column[datetime]:
    return Column(name, UtcDateTime, nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Integer, nullable=nullable)


datasets = Table(
    "datasets",
    metadata,
    _id(),
    _text("name", nullable=False),
    Column("content_sha256", String(64), nullable=False, unique=True),
    _text("path", nullable=False),
    _number("num_rows"),
    Column("num_bytes", BigInteger, nullable=False),
    _time("created_at", nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    _text("name", nullable=False),
    _state(),
    Column("priority", String(8), nullable=False),
    _reference("dataset_id", "datasets", nullable=False),
    Column("hyperparameters", JSON, nullable=False),
    Column("max_length", Integer),
    _text("parent", nullable=False),
    Column("parent_checkpoint_id", String(64)),
    Column("dedupe_key", String(80), nullable=False, unique=True),
    _text("submitted_by", nullable=False),
    Column("place", BigInteger, nullable=False),
    _time("not_before_at"),
    Column("after", JSON, nullable=False),
    _number("attempts"),
    _number("max_attempts"),
    Column("progress", JSON(none_as_null=True)),
    Column("problems", JSON, nullable=False),
    Column("command", String(8)),
    _text("note", nullable=False),
    Column("final_checkpoint_id", String(64)),
    _time("submitted_at", nullable=False),
    _time("queued_at"),
    _time("started_at"),
    _time("finished_at"),
    Index("ix_jobs_queue", "state", "priority", "place"),
    Index("ix_jobs_submitted_at", "submitted_at"),
    Index("ix_jobs_ended", "state", "finished_at"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _id(),
    _state(),
    Column("origin", String(16), nullable=False),
    _reference("job_id", "jobs"),
    _reference("parent_checkpoint_id", "checkpoints"),
    _reference("dataset_id", "datasets"),
    _number("step"),
    Column("is_final", Boolean, nullable=False),
    _text("path", nullable=False),
    Column("weights_sha256", String(64), nullable=False, index=True),
    Column("train_loss", Float),
    _text("note", nullable=False),
    _time("created_at", nullable=False),
)

suites = Table(
    "suites",
    metadata,
    _id(),
    _text("name", nullable=False),
    Column("content_sha256", String(64), nullable=False, unique=True),
    _text("path", nullable=False),
    _number("num_rows"),
    Column("num_by_difficulty", JSON, nullable=False),
    Column("is_active", Boolean, nullable=False),
    _time("created_at", nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    _id(),
    _reference("checkpoint_id", "checkpoints", nullable=False),
    _reference("suite_id", "suites", nullable=False),
    _state(),
    Column("settings", JSON, nullable=False),
    Column("summary", JSON(none_as_null=True)),
    _text("problem", nullable=False),
    _text("host", nullable=False),
    _time("requested_at", nullable=False),
    _time("answered_at"),
    Column("duration_seconds", Float),
)

# Kept apart from `evaluations`, so that a list of evaluations stays cheap.
evaluation_examples = Table(
    "evaluation_examples",
    metadata,
    Column("evaluation_id", String(64), ForeignKey("evaluations.id"), primary_key=True),
    Column("examples", JSON, nullable=False),
)

verdicts = Table(
    "verdicts",
    metadata,
    _id(),
    _reference("checkpoint_id", "checkpoints", nullable=False),
    _reference("suite_id", "suites", nullable=False),
    _reference("evaluation_id", "evaluations", nullable=False),
    _reference("baseline_checkpoint_id", "checkpoints"),
    _reference("baseline_evaluation_id", "evaluations"),
    Column("outcome", String(16), nullable=False),
    Column("reasons", JSON, nullable=False),
    _number("num_pairs"),
    Column("loss_increase", JSON(none_as_null=True)),
    Column("accuracy_change", JSON(none_as_null=True)),
    Column("perplexity_ratio", JSON(none_as_null=True)),
    Column("slices", JSON, nullable=False),
    _number("num_small_slices"),
    Column("drift", JSON(none_as_null=True)),
    Column("power", JSON(none_as_null=True)),
    _time("decided_at", nullable=False),
)

accuracy_reports = Table(
    "accuracy_reports",
    metadata,
    _id(),
    _reference("checkpoint_id", "checkpoints", nullable=False),
    _reference("suite_id", "suites", nullable=False),
    _reference("evaluation_id", "evaluations", nullable=False),
    Column("baseline_checkpoint_id", String(64)),
    Column("baseline_evaluation_id", String(64)),
    Column("total", JSON(none_as_null=True)),
    Column("levels", JSON, nullable=False),
    Column("gained_row_ids", JSON, nullable=False),
    Column("lost_row_ids", JSON, nullable=False),
    Column("level", String(16)),
    Column("reasons", JSON, nullable=False),
    _time("made_at", nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    _id(),
    Column("source", String(16), nullable=False),
    Column("level", String(16), nullable=False),
    _reference("checkpoint_id", "checkpoints", nullable=False),
    _reference("suite_id", "suites", nullable=False),
    _text("message", nullable=False),
    Column("raised_at", UtcDateTime, nullable=False, index=True),
)

calibrations = Table(
    "calibrations",
    metadata,
    _id(),
    _reference("checkpoint_id", "checkpoints", nullable=False),
    _reference("suite_id", "suites", nullable=False),
    _reference("evaluation_id", "evaluations", nullable=False),
    Column("outcome", String(16), nullable=False),
    _text("reason", nullable=False),
    _number("num_examples"),
    _number("num_unfinished"),
    _number("num_held_out"),
    Column("map", JSON(none_as_null=True)),
    Column("trials", JSON, nullable=False),
    Column("overall", JSON(none_as_null=True)),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    Column("settings", JSON, nullable=False),
    Column("decided_at", UtcDateTime, nullable=False, index=True),
)

rankings = Table(
    "rankings",
    metadata,
    _id(),
    _reference("suite_id", "suites", nullable=False),
    _reference("served_checkpoint_id", "checkpoints"),
    Column("evidence_sha256", String(64), nullable=False),
    Column("entries", JSON, nullable=False),
    Column("weights", JSON, nullable=False),
    _number("num_eligible"),
    _text("note", nullable=False),
    Column("made_at", UtcDateTime, nullable=False, index=True),
)

deployments = Table(
    "deployments",
    metadata,
    _id(),
    Column("generation", Integer, nullable=False, unique=True),
    _reference("checkpoint_id", "checkpoints", nullable=False),
    _state(),
    _text("release_path", nullable=False),
    Column("weights_sha256", String(64), nullable=False),
    _text("reason", nullable=False),
    _text("problem", nullable=False),
    _number("num_files"),
    Column("num_bytes", BigInteger, nullable=False),
    _time("started_at", nullable=False),
    _time("activated_at"),
    _time("ended_at"),
    Column("duration_seconds", Float),
)

leases = Table(
    "leases",
    metadata,
    _id(128),
    _text("holder", nullable=False),
    _number("token"),
    _time("acquired_at", nullable=False),
    _time("renewed_at", nullable=False),
    _time("expires_at", nullable=False),
)

asks = Table(
    "asks",
    metadata,
    _id(128),
    _text("kind", nullable=False),
    _text("subject_id", nullable=False),
    _number("num_asked"),
    _time("asked_at", nullable=False),
    Column("is_settled", Boolean, nullable=False, index=True),
)

handled_messages = Table(
    "handled_messages",
    metadata,
    _id(),
    Column("handled_at", UtcDateTime, nullable=False, index=True),
)

hosts = Table(
    "hosts",
    metadata,
    _id(128),
    Column("roles", JSON, nullable=False),
    Column("is_draining", Boolean, nullable=False),
    Column("drain_after_job_id", String(64)),
    _text("reason", nullable=False),
    _text("waits_for", nullable=False),
    _time("seen_at", nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False, index=True),
    _text("actor", nullable=False),
    Column("kind", String(32), nullable=False),
    Column("subject_id", String(128), nullable=False, index=True),
    Column("before", String(16)),
    Column("after", String(32), nullable=False),
    _text("reason", nullable=False),
    Column("data", JSON, nullable=False),
)

TABLES: dict[type[Record], Table] = {
    Dataset: datasets,
    TrainingJob: jobs,
    Checkpoint: checkpoints,
    Suite: suites,
    Evaluation: evaluations,
    Verdict: verdicts,
    AccuracyReport: accuracy_reports,
    Alert: alerts,
    Calibration: calibrations,
    Ranking: rankings,
    Deployment: deployments,
    Lease: leases,
    Ask: asks,
    HandledMessage: handled_messages,
    Host: hosts,
    Event: events,
}
