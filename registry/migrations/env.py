"""Runs migrations on the connection that `registry.schema.upgrade` hands over."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from registry.tables import UtcDateTime, metadata


def _plain_types(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Write our time type as what it is to a database, so that migrations import nothing of ours."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=_plain_types,
)
with context.begin_transaction():
    context.run_migrations()
