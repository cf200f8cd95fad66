"""Verdicts tell slices, drift and power; accuracy reports and alerts are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("verdicts", sa.Column("slices", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("verdicts", sa.Column("num_small_slices", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("verdicts", sa.Column("drift", sa.JSON(), nullable=True))
    op.add_column("verdicts", sa.Column("power", sa.JSON(), nullable=True))
    _accuracy_reports()
    _alerts()


def _accuracy_reports() -> None:
    op.create_table(
        "accuracy_reports",
        sa.Column("id", sa.String(length=64), nullable=False),
        _reference("checkpoint_id"),
        _reference("suite_id"),
        _reference("evaluation_id"),
        sa.Column("baseline_checkpoint_id", sa.String(length=64), nullable=True),
        sa.Column("baseline_evaluation_id", sa.String(length=64), nullable=True),
        sa.Column("total", sa.JSON(), nullable=True),
        sa.Column("levels", sa.JSON(), nullable=False),
        sa.Column("gained_row_ids", sa.JSON(), nullable=False),
        sa.Column("lost_row_ids", sa.JSON(), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accuracy_reports")),
        *(_foreign_key("accuracy_reports", name) for name in ("checkpoint", "suite", "evaluation")),
    )
    for name in ("checkpoint_id", "suite_id", "evaluation_id"):
        op.create_index(f"ix_accuracy_reports_{name}", "accuracy_reports", [name], unique=False)


def _alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        _reference("checkpoint_id"),
        _reference("suite_id"),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        *(_foreign_key("alerts", name) for name in ("checkpoint", "suite")),
    )
    for name in ("checkpoint_id", "suite_id", "raised_at"):
        op.create_index(f"ix_alerts_{name}", "alerts", [name], unique=False)


def _reference(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=64), nullable=False)


def _foreign_key(table: str, name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([f"{name}_id"], [f"{name}s.id"], name=op.f(f"fk_{table}_{name}_id"))
