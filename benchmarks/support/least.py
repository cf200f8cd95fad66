"""The least that a kept job can cost: a durable row when it is submitted, a compare-and-set when it starts.

Plain SQL by the driver over the product's own connections, and nothing else: no device is asked, no lease
taken, no event noted, no file written. The bell is rung before the row is written, as the product does.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Any

from config.settings import load_settings
from registry.store import Registry

POLL_SECONDS = 0.0002
WAIT_SECONDS = 1.0


def make_table() -> None:
    """One table, of its own."""
    _say("CREATE TABLE least_jobs (name VARCHAR(40) PRIMARY KEY, state VARCHAR(10) NOT NULL)")


def write(name: str) -> None:
    """Committed, and on the disk, when this returns."""
    _say("INSERT INTO least_jobs VALUES ({}, 'queued')", name)


def claim(name: str) -> None:
    """Wait for a row and take it; `SystemExit` where it does not come or somebody took it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while _say("UPDATE least_jobs SET state = 'running' WHERE name = {} AND state = 'queued'", name) != 1:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} was not there to be taken.")
        time.sleep(POLL_SECONDS)


def _say(statement: str, *values: str) -> int:
    """One statement in a transaction of its own; the number of rows that it changed."""
    connection, mark = _connection(os.getpid())
    cursor = connection.cursor()
    try:
        cursor.execute(statement.format(mark), values)
        return int(cursor.rowcount)
    finally:
        cursor.close()


@lru_cache(maxsize=1)
def _connection(_process_id: int) -> tuple[Any, str]:
    """The driver's own, which commits each statement, and how it marks a value."""
    engine = Registry(load_settings().database_url).engine
    connection: Any = engine.raw_connection()
    if engine.dialect.name != "sqlite":
        return connection, "%s"
    connection.cursor().execute("PRAGMA synchronous=FULL")
    return connection, "?"
