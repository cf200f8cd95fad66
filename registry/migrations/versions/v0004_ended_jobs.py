"""Ended jobs are found by when they ended, however many there are."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_index("ix_jobs_ended", "jobs", ["state", "finished_at"], unique=False)
