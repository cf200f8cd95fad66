"""How well a checkpoint's confidence says how often it is right, and the map that mends it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "calibrations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("checkpoint_id", sa.String(length=64), nullable=False),
        sa.Column("suite_id", sa.String(length=64), nullable=False),
        sa.Column("evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("num_examples", sa.Integer(), nullable=False),
        sa.Column("num_unfinished", sa.Integer(), nullable=False),
        sa.Column("num_held_out", sa.Integer(), nullable=False),
        sa.Column("map", sa.JSON(), nullable=True),
        sa.Column("trials", sa.JSON(), nullable=False),
        sa.Column("overall", sa.JSON(), nullable=True),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=True),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        *(
            sa.ForeignKeyConstraint([f"{kind}_id"], [f"{kind}s.id"], name=op.f(f"fk_calibrations_{kind}_id"))
            for kind in ("checkpoint", "suite", "evaluation")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibrations")),
    )
    for column in ("checkpoint_id", "decided_at", "evaluation_id", "suite_id"):
        op.create_index(op.f(f"ix_calibrations_{column}"), "calibrations", [column], unique=False)
