"""Rankings name the evaluations they stand on; those of the older form are made anew by the next tick."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.drop_table("rankings")
    op.create_table(
        "rankings",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("suite_id", sa.String(length=64), nullable=False),
        sa.Column("served_checkpoint_id", sa.String(length=64), nullable=True),
        sa.Column("evidence_sha256", sa.String(length=64), nullable=False),
        sa.Column("entries", sa.JSON(), nullable=False),
        sa.Column("weights", sa.JSON(), nullable=False),
        sa.Column("num_eligible", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["served_checkpoint_id"], ["checkpoints.id"], name=op.f("fk_rankings_served_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(["suite_id"], ["suites.id"], name=op.f("fk_rankings_suite_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rankings")),
    )
    for column in ("made_at", "served_checkpoint_id", "suite_id"):
        op.create_index(op.f(f"ix_rankings_{column}"), "rankings", [column], unique=False)
