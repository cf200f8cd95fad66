"""Runs a command: an argument list, a time limit, its last words, and its whole process group ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_OUTPUT_CHARS, MAX_ERROR_CHARS = 100_000, 2000
KILL_SECONDS = 5.0


@dataclass(frozen=True)
class Finished:
    """How a command ended. `code` is None where it did not end in time."""

    code: int | None
    output: str
    errors: str


class Runner(Protocol):
    """Runs an argument list, never a shell."""

    def __call__(
        self, command: Sequence[str], *, timeout_seconds: float, environment: Mapping[str, str]
    ) -> Finished:
        """Run it to its end or its time limit; `OSError` where there is no such command."""


def run_command(
    command: Sequence[str], *, timeout_seconds: float, environment: Mapping[str, str]
) -> Finished:
    """In a process group of its own, which is ended with it: rsync starts an ssh that must not stay."""
    with subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            _end_group(process)
            output, errors = process.communicate()
            return Finished(
                None, _tail(output, num_chars=MAX_OUTPUT_CHARS), _tail(errors, num_chars=MAX_ERROR_CHARS)
            )
        finally:
            _end_group(process)
        return Finished(
            process.returncode,
            _tail(output, num_chars=MAX_OUTPUT_CHARS),
            _tail(errors, num_chars=MAX_ERROR_CHARS),
        )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Politely, so that rsync keeps its partial file; then surely. The group is ours: a session."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KILL_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(text: bytes, *, num_chars: int) -> str:
    return text.decode("utf-8", errors="replace")[-num_chars:].strip()
