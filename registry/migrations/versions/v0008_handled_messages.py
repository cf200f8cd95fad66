"""Which messages were obeyed, so that one that is delivered again is not obeyed again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "handled_messages",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("handled_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_handled_messages")),
    )
    op.create_index(op.f("ix_handled_messages_handled_at"), "handled_messages", ["handled_at"], unique=False)
