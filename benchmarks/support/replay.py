"""What tandem's registry and files do for one job, replayed by the driver alone: what the guarantees cost.

The statements of one submission and one start are taken down as tandem makes them, with their values. Played
again under another job's name they leave the same rows, lease and events and the same job file, behind the
same questions. Nothing is checked, no record is made, and nobody decides anything: what tandem takes beyond
this is its code in Python.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import psutil

import tasks.training
from config.settings import load_settings
from registry import lean
from registry.messages import JobBell
from registry.records import TrainingJob
from registry.store import Registry
from workers.context import Context
from workers.runner import TrainingRun
from workers.testing import FakeChild, finished

Statements = list[tuple[str, list[Any]]]

POLL_SECONDS = 0.0002
WAIT_SECONDS = 1.0


def take_down(context: Context, *, submit: Callable[[int], str]) -> None:
    """Submit one job and run it, in this process, and keep what was said to the database on the way."""
    with _listening() as submission:
        name = submit(0)
    start: Statements = []
    text = ""
    with _listening() as said:

        def start_child(job_file: Path, *, log_file: Path, num_processes: int) -> FakeChild:
            nonlocal start, text
            start, text = list(said), job_file.read_text()
            return FakeChild([finished()])(job_file, log_file=log_file, num_processes=num_processes)

        plain = tasks.training.TrainingRun
        tasks.training.TrainingRun = partial(TrainingRun, start_child=start_child)  # type: ignore[assignment,misc]
        try:
            tasks.training.train(JobBell(job_id=name), context)
        finally:
            tasks.training.TrainingRun = plain  # type: ignore[misc]
    with context.registry.reading() as tx:
        key = tx.get(TrainingJob, name).dedupe_key
    kept = {"names": [key, name], "submission": submission, "start": start, "job_file": text}
    _path().write_text(json.dumps(kept))


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
    _path().with_name(f"{name}.json").write_text(_renamed(_taken_down()["job_file"], name=name))


def end(name: str) -> None:
    """So that the next one is the first again."""
    _connection(os.getpid()).execute("UPDATE jobs SET state = 'succeeded' WHERE id = ?", (name,))


@contextmanager
def _listening() -> Iterator[Statements]:
    said: Statements = []
    plain = lean._run

    def run(connection: Any, *, sql: str, parameters: Any) -> Any:
        said.append((sql, list(parameters)))
        return plain(connection, sql=sql, parameters=parameters)

    lean._run = run
    try:
        yield said
    finally:
        lean._run = plain


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
    kept: dict[str, Any] = json.loads(_path().read_text())
    return kept


@lru_cache(maxsize=1)
def _path() -> Path:
    return load_settings().paths.run / "replay.json"


@lru_cache(maxsize=1)
def _connection(_process_id: int) -> Any:
    connection: Any = Registry(load_settings().database_url).engine.raw_connection().dbapi_connection
    connection.execute("PRAGMA synchronous=FULL")
    return connection
