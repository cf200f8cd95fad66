"""What tandem's registry and files do for one job, replayed by the driver alone: what the guarantees cost.

The statements of one submission and one start were taken down as tandem makes them, with their values
(`benchmarks/support/recording.py`). Played again under another job's name they leave the same rows, lease and
events and the same job file, behind the same questions. Nothing is checked, no record is made, and nobody
decides anything: what tandem takes beyond this is its code in Python. None of that is imported here, so that
the workers of bare Celery do not carry it.
"""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from config.settings import load_settings
from registry.store import Registry

POLL_SECONDS = 0.0002
WAIT_SECONDS = 1.0


@lru_cache(maxsize=1)
def recording_path() -> Path:
    """Where the recording lies."""
    return load_settings().paths.run / "replay.json"


def write(name: str) -> None:
    """As a submission does."""
    _play("submission", name=name)


def claim(name: str) -> None:
    """As a start does, once the row is there; `SystemExit` where it does not come."""
    connection, deadline = _connection(os.getpid()), time.monotonic() + WAIT_SECONDS
    while not connection.execute("SELECT 1 FROM jobs WHERE id = ?", (name,)).fetchall():
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} was not there to be taken.")
        time.sleep(POLL_SECONDS)
    psutil.virtual_memory()
    _play("start", name=name)
    recording_path().with_name(f"{name}.json").write_text(_renamed(_taken_down()["job_file"], name=name))


def end(name: str) -> None:
    """So that the next one is the first again."""
    _connection(os.getpid()).execute("UPDATE jobs SET state = 'succeeded' WHERE id = ?", (name,))


def _play(part: str, *, name: str) -> None:
    connection = _connection(os.getpid())
    for sql, parameters in _taken_down()[part]:
        if sql.startswith(("BEGIN", "PRAGMA synchronous")) and connection.in_transaction:
            connection.commit()
        connection.execute(sql, [_renamed(one, name=name) for one in parameters]).fetchall()
    connection.commit()


def _renamed(value: Any, *, name: str) -> Any:
    if isinstance(value, str):
        for old in _taken_down()["names"]:
            value = value.replace(old, name)
    return value


@lru_cache(maxsize=1)
def _taken_down() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(recording_path().read_text())
    return kept


@lru_cache(maxsize=1)
def _connection(_process_id: int) -> Any:
    connection: Any = Registry(load_settings().database_url).engine.raw_connection().dbapi_connection
    connection.execute("PRAGMA synchronous=FULL")
    return connection
