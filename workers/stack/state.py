"""Which processes belong to a running stack, kept in `run/stack.json` so that `tandem down` finds them."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
from pydantic import ValidationError

from registry.files import write_json
from registry.records import Record

STATE_NAME = "stack.json"


class ProcessId(Record):
    """A process id with its start time: ids are used again, the pair is not."""

    name: str
    pid: int
    started: float


class StackState(Record):
    """The supervisor and its parts."""

    supervisor: ProcessId
    parts: tuple[ProcessId, ...] = ()


def identify(name: str, *, pid: int) -> ProcessId | None:
    """The identity of a living process, or None."""
    try:
        return ProcessId(name=name, pid=pid, started=psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_alive(process: ProcessId) -> bool:
    """True where this very process runs still."""
    try:
        found = psutil.Process(process.pid)
        is_same = abs(found.create_time() - process.started) < 1.0
        return is_same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def read_state(run_directory: Path) -> StackState | None:
    """The recorded stack, or None where none was recorded or the file is damaged."""
    try:
        return StackState.model_validate_json((run_directory / STATE_NAME).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_state(run_directory: Path, *, state: StackState) -> None:
    """Record the stack."""
    write_json(run_directory / STATE_NAME, value=state.model_dump(mode="json"))


def forget_state(run_directory: Path) -> None:
    """The stack is down."""
    (run_directory / STATE_NAME).unlink(missing_ok=True)


def end_leftovers(state: StackState, *, wait_seconds: float) -> list[str]:
    """End what a killed supervisor left behind, politely, then surely; the names of what was ended."""
    living = [process for process in reversed(state.parts) if is_alive(process)]
    found = [psutil.Process(process.pid) for process in living]
    families = [child for process in found for child in process.children(recursive=True)] + found
    for process in found:
        _signal(process, number=signal.SIGTERM)
    _, stubborn = psutil.wait_procs(families, timeout=wait_seconds)
    for process in stubborn:
        _signal(process, number=signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=wait_seconds)
    return [process.name for process in living]


def _signal(process: psutil.Process, *, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
