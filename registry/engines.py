"""Opens SQLite or PostgreSQL as the store wants them, and says in a sentence what a driver objects to."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Hashable
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.pool import QueuePool

from registry import lean
from registry.errors import RegistryError, RegistryUnavailable, StaleWrite, ValueRefused
from registry.forks import keep_from_forks

WRITERS_LOCK = 7_265_336  # any number that nobody else uses in this database
READ_ONLY, IS_DURABLE = "tandem_read_only", "tandem_is_durable"  # options of a transaction
SYNCHRONOUS, USED_AT, NUMBER = "synchronous", "used_at", "number"  # noted with a connection
PING_AFTER_SECONDS = 1.0
_numbers = itertools.count()
DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",  # as hosting services write it
    "postgresql+psycopg": "postgresql+psycopg",
}


def open_engine(url: str, *, busy_timeout_ms: int) -> Engine:
    """An engine; nothing is connected yet. `RegistryUnavailable` where the URL names no database of ours."""
    known = _parse(url)
    options: dict[str, Any] = {
        "pool_timeout": busy_timeout_ms / 1000,
        "json_serializer": partial(json.dumps, allow_nan=False),
    }
    try:
        if known.get_backend_name() == "sqlite":
            return _open_sqlite(known, options=options, busy_timeout_ms=busy_timeout_ms)
        return _open_postgresql(known, options=options, busy_timeout_ms=busy_timeout_ms)
    except ModuleNotFoundError as error:
        raise RegistryUnavailable(
            f"The driver of PostgreSQL is not installed ({error.name}).",
            remedy="Install it: pip install 'tandem[postgresql]'.",
        ) from None


def explain(error: SQLAlchemyError, *, where: str) -> RegistryError:
    """The error of the registry that a driver's is."""
    if isinstance(error, ProgrammingError):
        return RegistryUnavailable(
            f"The registry {where} lacks what this version of tandem needs: {error.orig}.",
            remedy="`tandem up` brings it up to date.",
        )
    cause = getattr(error, "orig", None) or error
    if isinstance(error, IntegrityError):
        return StaleWrite(f"The registry {where} holds something that speaks against it: {cause}.")
    if isinstance(error, DataError) or isinstance(cause, ValueError):
        return ValueRefused(f"The registry {where} cannot keep a value: {cause}.")
    if isinstance(error, DBAPIError):
        return RegistryUnavailable(
            f"The registry {where} cannot be used: {cause}.",
            remedy="Check TANDEM_REGISTRY_URL, the disk, and that no other program holds the database.",
        )
    return RegistryUnavailable(
        f"The registry {where} cannot be used: {cause}.", remedy="Try again when less is going on."
    )


def moment(connection: Connection) -> Hashable:
    """Equal to an earlier one only where no other transaction changed anything between.

    SQLite's `data_version` tells of other connections' writes, `total_changes` of the connection's own, so a
    moment of another connection is never equal. PostgreSQL names the transactions whose writes are seen.
    """
    if connection.dialect.name != "sqlite":
        return str(lean.say(connection, "SELECT pg_current_snapshot()::text").fetchone()[0])
    version = lean.say(connection, "PRAGMA data_version").fetchone()[0]
    number = connection.info.setdefault(NUMBER, next(_numbers))
    driver: Any = connection.connection.dbapi_connection
    return number, version, driver.total_changes


def _parse(url: str) -> URL:
    remedy = "TANDEM_REGISTRY_URL is sqlite:///FILE or postgresql://USER@HOST/DATABASE, password in a file."
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # said without the text: it may hold a password
        raise RegistryUnavailable("The registry's URL cannot be read.", remedy=remedy) from None
    if parsed.drivername not in DRIVERS:
        raise RegistryUnavailable(f"The registry cannot be kept in {parsed.drivername}.", remedy=remedy)
    return parsed.set(drivername=DRIVERS[parsed.drivername])


def _open_postgresql(url: URL, *, options: dict[str, Any], busy_timeout_ms: int) -> Engine:
    engine = create_engine(url, **options)
    keep_from_forks(engine)
    event.listen(engine, "connect", partial(_prepare_postgresql, lock_timeout_ms=busy_timeout_ms))
    event.listen(engine, "checkout", partial(_ping_where_idle, engine=engine))
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _open_sqlite(url: URL, *, options: dict[str, Any], busy_timeout_ms: int) -> Engine:
    # Kept open: closing the last connection of a write-ahead log folds it in, which costs 20 ms each time.
    engine = create_engine(url, poolclass=QueuePool, pool_reset_on_return=None, **options)
    event.listen(engine, "checkin", _roll_back_what_is_open)
    keep_from_forks(engine)
    event.listen(engine, "connect", partial(_prepare_sqlite, busy_timeout_ms=busy_timeout_ms))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _roll_back_what_is_open(connection: Any, _record: Any) -> None:
    """A COMMIT that failed leaves its transaction open, which SQLAlchemy takes for ended."""
    if connection is not None and connection.in_transaction:
        connection.rollback()


def _prepare_postgresql(connection: Any, record: Any, *, lock_timeout_ms: int) -> None:
    connection.autocommit = True  # we say BEGIN, not the driver: see _begin_postgresql
    connection.execute(f"SET lock_timeout = {lock_timeout_ms}")
    _note_use(connection, record)


def _ping_where_idle(connection: Any, record: Any, _proxy: Any, *, engine: Engine) -> None:
    """A server that was restarted meanwhile is nobody's error; one that was just used is not asked."""
    if time.monotonic() - record.info[USED_AT] < PING_AFTER_SECONDS:
        return
    try:
        connection.execute("SELECT 1")
    except engine.dialect.loaded_dbapi.Error as error:
        raise DisconnectionError(str(error)) from error


def _note_use(_connection: Any, record: Any) -> None:
    record.info[USED_AT] = time.monotonic()


def _begin_postgresql(connection: Connection) -> None:
    """One round trip each."""
    if connection.get_execution_options().get(READ_ONLY, False):
        lean.say(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return
    lean.say(connection, f"BEGIN; SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


def _prepare_sqlite(connection: Any, _record: Any, *, busy_timeout_ms: int) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, not the driver: see _begin_sqlite
    for pragma in (f"busy_timeout={busy_timeout_ms}", "journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(READ_ONLY, False):
        lean.say(connection, "BEGIN")
        return
    # FULL: a state change that was announced survives a power cut. NORMAL: all up to some moment do.
    synchronous = "FULL" if options.get(IS_DURABLE, True) else "NORMAL"
    if connection.info.get(SYNCHRONOUS) != synchronous:
        lean.say(connection, f"PRAGMA synchronous={synchronous}")
        connection.info[SYNCHRONOUS] = synchronous
    lean.say(connection, "BEGIN IMMEDIATE")
