"""Jobs have a place, a start time, predecessors and a limit of attempts; hosts can be drained."""

from __future__ import annotations

from datetime import UTC

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MICROSECONDS = 1_000_000


def upgrade() -> None:
    """Apply."""
    op.add_column("jobs", sa.Column("max_length", sa.Integer()))
    op.add_column("jobs", sa.Column("place", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("not_before_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("after", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("jobs", sa.Column("max_attempts", sa.Integer(), nullable=False, server_default="3"))
    op.add_column("jobs", sa.Column("note", sa.Text(), nullable=False, server_default=""))
    _keep_the_order()
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index("ix_jobs_queue", "jobs", ["state", "priority", "place"], unique=False)
    op.create_index("ix_jobs_submitted_at", "jobs", ["submitted_at"], unique=False)
    op.create_table(
        "hosts",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("is_draining", sa.Boolean(), nullable=False),
        sa.Column("drain_after_job_id", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("waits_for", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
    )


def _keep_the_order() -> None:
    jobs = sa.table(
        "jobs",
        sa.column("id", sa.String()),
        sa.column("place", sa.BigInteger()),
        sa.column("queued_at", sa.DateTime(timezone=True)),
    )
    connection = op.get_bind()
    known = sa.select(jobs.c.id, jobs.c.queued_at).where(jobs.c.queued_at.is_not(None))
    for row in connection.execute(known).all():
        utc = row.queued_at if row.queued_at.tzinfo else row.queued_at.replace(tzinfo=UTC)
        place = int(utc.timestamp() * MICROSECONDS)
        connection.execute(jobs.update().where(jobs.c.id == row.id).values(place=place))
