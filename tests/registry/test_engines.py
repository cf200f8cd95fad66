from pathlib import Path

import pytest
from sqlalchemy import text

from registry import engines
from registry.errors import RegistryUnavailable, StaleWrite
from registry.store import Registry
from registry.testing import make_registry

NORMAL, FULL = 1, 2  # as SQLite counts them


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_is_taken_as_it_is_usually_written(scheme: str) -> None:
    registry = Registry(f"{scheme}://me:secret@nowhere/tandem")
    assert registry.engine.url.drivername == "postgresql+psycopg"
    assert "secret" not in repr(registry)


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@nowhere/x", "me:secret@nowhere", "", "postgresql://me:secret@h:port/x"]
)
def test_a_url_that_names_no_database_of_ours_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(RegistryUnavailable, match="TANDEM_REGISTRY_URL is sqlite") as caught:
        Registry(url)
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_options: object) -> object:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr(engines, "create_engine", missing)
    with pytest.raises(RegistryUnavailable, match=r"\(psycopg\).*pip install 'tandem\[postgresql\]'"):
        Registry("postgresql://nowhere/tandem")


def test_every_write_survives_a_power_cut_but_those_that_need_not(tmp_path: Path) -> None:
    registry, found = make_registry(tmp_path), []
    for is_durable in (True, False, False, True):
        with registry.transaction(is_durable=is_durable) as tx:
            found.append(tx.connection.scalar(text("PRAGMA synchronous")))
    registry.engine.dispose()
    assert found == [FULL, NORMAL, NORMAL, FULL]


def test_a_commit_that_fails_stands_in_nobodys_way(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    child = "CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"
    with registry.transaction() as tx:
        for statement in ("CREATE TABLE parent (id INTEGER PRIMARY KEY)", child):
            tx.connection.execute(text(statement))
    with pytest.raises(StaleWrite, match="FOREIGN KEY"), registry.transaction() as tx:
        tx.connection.execute(text("INSERT INTO child VALUES (1)"))  # found out by COMMIT
    for each in (registry, Registry(str(registry.engine.url))):
        with each.transaction() as tx:
            assert tx.connection.scalar(text("SELECT COUNT(*) FROM child")) == 0
        each.engine.dispose()


@pytest.mark.integration
def test_a_server_that_ended_a_connection_meanwhile_is_nobodys_error(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "PING_AFTER_SECONDS", 0.0)
    registry, other = Registry(postgresql_url), Registry(postgresql_url)
    asked = text("SELECT pg_backend_pid()")
    with registry.reading() as tx:
        pid = tx.connection.scalar(asked)
    with other.reading() as tx:
        tx.connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    with registry.reading() as tx:
        assert tx.connection.scalar(asked) != pid
    registry.engine.dispose()
    other.engine.dispose()
