from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from registry.errors import RegistryUnavailable
from registry.schema import check_schema, upgrade
from registry.store import Registry
from registry.tables import metadata


def test_the_migrations_give_the_tables_that_the_code_uses(registry: Registry) -> None:
    with registry.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_upgrading_twice_changes_nothing(registry: Registry) -> None:
    upgrade(registry)
    check_schema(registry)


def test_a_database_of_another_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailable, match="schema is empty.*tandem up"):
        check_schema(Registry(f"sqlite:///{tmp_path / 'empty.db'}"))
