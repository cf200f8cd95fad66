"""Brings a database to the schema this code was written for."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from registry.errors import RegistryUnavailable
from registry.store import Registry


def upgrade(registry: Registry) -> None:
    """Apply the missing migrations in one transaction; does nothing where there are none.

    Two processes that start together are safe: the second waits for the write lock and finds nothing to do.
    """
    if _revision(registry) == newest_revision():
        return
    with registry.transaction() as tx:
        config = _config()
        config.attributes["connection"] = tx.connection
        command.upgrade(config, "head")


def check_schema(registry: Registry) -> None:
    """`RegistryUnavailable` where the database is older or newer than this code."""
    found, wanted = _revision(registry), newest_revision()
    if found != wanted:
        raise RegistryUnavailable(
            f"The registry's schema is {found or 'empty'}; this version of tandem needs {wanted}.",
            remedy="`tandem up` brings it up to date.",
        )


def newest_revision() -> str:
    """The revision that this code was written for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RegistryUnavailable("tandem is installed without its migrations.", remedy="Install it again.")
    return head


def _revision(registry: Registry) -> str | None:
    if not registry.exists:
        return None
    with registry.reading() as tx:
        return _current(tx.connection)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "registry:migrations")
    config.set_main_option("path_separator", "os")
    return config
