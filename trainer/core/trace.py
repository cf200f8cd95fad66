"""Which rows each optimizer step learnt from: one line a step, in `rows.jsonl` beside the checkpoints.

Off unless `monitoring.record_rows` asks for it. All attempts at a job append to the one file, so that who
reads it can follow the weights back: from the last attempt to the checkpoint that it went on from, from
there to the attempt that saved it, and so on to the first step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from registry.records import Record
from trainer.errors import DiskFull

TRACE_NAME = "rows.jsonl"


class TraceLine(Record):
    """A step that was taken, with its row numbers (from 1), or a checkpoint that was saved."""

    attempt: str
    resumed_from_step: int
    what: Literal["taken", "saved"]
    step: int
    rows: tuple[int, ...] = ()


class RowTrace:
    """Appends to a job's trace; a line is with the system before the next step begins."""

    def __init__(self, directory: Path, *, attempt: str, resumed_from_step: int) -> None:
        self._path = directory / TRACE_NAME
        self._attempt = attempt
        self._resumed_from_step = resumed_from_step
        self._mend()

    def taken(self, step: int, *, rows: tuple[int, ...]) -> None:
        """The optimizer moved on these rows."""
        self._write("taken", step=step, rows=rows)

    def saved(self, step: int) -> None:
        """A checkpoint of this step is in place."""
        self._write("saved", step=step, rows=())

    def _write(self, what: Literal["taken", "saved"], *, step: int, rows: tuple[int, ...]) -> None:
        line = TraceLine(
            attempt=self._attempt,
            resumed_from_step=self._resumed_from_step,
            what=what,
            step=step,
            rows=rows,
        )
        self._append(line.model_dump_json().encode() + b"\n")

    def _mend(self) -> None:
        """End a line that an earlier attempt could write only half."""
        if not self._path.exists() or self._path.stat().st_size == 0:
            return
        with self._path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            is_torn = stream.read(1) != b"\n"
        if is_torn:
            self._append(b"\n")

    def _append(self, content: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            num_written = os.write(descriptor, content)
        except OSError as error:
            raise DiskFull(
                f"{self._path} cannot be written: {error.strerror}.", remedy="Free space there."
            ) from error
        finally:
            os.close(descriptor)
        if num_written < len(content):
            raise DiskFull(f"{self._path} was written only in part.", remedy="Free space there.")


def read_trace(directory: Path) -> list[TraceLine]:
    """Every whole line of a job's trace, in the order of writing; a torn one says nothing."""
    path = directory / TRACE_NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [found for line in lines if (found := _parse(line)) is not None]


def _parse(line: bytes) -> TraceLine | None:
    try:
        return TraceLine.model_validate_json(line)
    except ValidationError:
        return None
