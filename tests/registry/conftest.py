"""Every test of a registry runs on SQLite, and as an integration test on a real PostgreSQL too."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from registry.schema import upgrade
from registry.store import Registry
from registry.tables import metadata
from registry.testing import ManualClock, make_registry
from registry.testing_postgresql import postgresql_server

Open = Callable[[], Registry]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    with postgresql_server(is_durable=False) as url:
        registry = Registry(url)
        upgrade(registry)
        registry.engine.dispose()
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def open_registry(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Open]:
    """Opens the same empty registry again and again, as processes do."""
    if request.param == "sqlite":
        yield lambda: make_registry(tmp_path, clock=clock)
        return
    url = request.getfixturevalue("postgresql_url")
    opened: list[Registry] = []

    def open_one() -> Registry:
        opened.append(Registry(url, clock=clock))
        return opened[-1]

    with open_one().engine.begin() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    yield open_one
    for registry in opened:
        registry.engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database in which there is no table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    url = request.getfixturevalue("postgresql_url")
    import psycopg  # not everybody who runs the fast tests has it

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as server:
        server.execute("CREATE DATABASE empty")
        yield url.replace("/postgres?", "/empty?")
        server.execute("DROP DATABASE empty WITH (FORCE)")


@pytest.fixture
def registry(open_registry: Open) -> Registry:
    return open_registry()
