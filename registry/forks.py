"""Keeps a database connection from being used on both sides of a fork."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

PID = "pid"
# Neither used nor closed here: closing would disturb the process that it belongs to.
_inherited: list[Any] = []


def keep_from_forks(engine: Engine) -> None:
    """A process that inherits pooled connections opens its own instead (SQLAlchemy, "Using Connection
    Pools with Multiprocessing or os.fork()")."""
    event.listen(engine, "connect", _note_owner)
    event.listen(engine, "checkout", _check_owner)


def _note_owner(_connection: Any, record: Any) -> None:
    record.info[PID] = os.getpid()


def _check_owner(connection: Any, record: Any, proxy: Any) -> None:
    if record.info[PID] == os.getpid():
        return
    _inherited.append(connection)
    record.dbapi_connection = proxy.dbapi_connection = None
    raise DisconnectionError("a connection does not cross a fork")
