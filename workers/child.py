"""The trainer as a child process: start it, read what it says, tell it to stop, be sure that it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from trainer.messages import ChildMessage, parse_line

Spawn = Callable[..., subprocess.Popen[bytes]]
KILL_WAIT_SECONDS = 10.0
LAST_LOG_BYTES = 2000


class Child(Protocol):
    """A trainer as its runner sees it. These five: hear it, tell it, end it, and know how it ended."""

    @property
    def return_code(self) -> int | None:
        """None while it runs."""

    def next_message(self, *, timeout_seconds: float) -> ChildMessage | None:
        """The next message, or None where none came in time."""

    def request(self, command: str) -> None:
        """Tell it `stop` or `pause`."""

    def end(self) -> None:
        """Make sure that it is gone."""

    def last_words(self) -> str:
        """The last line of its log."""


class TrainerChild:
    """One `python -m trainer JOB.json`, with all its processes in a process group of its own.

    Its standard input is the leash: when this process dies, the pipe closes and the trainer ends itself.
    """

    def __init__(
        self, job_file: Path, *, log_file: Path, num_processes: int = 1, spawn: Spawn = subprocess.Popen
    ) -> None:
        self._log_file = log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        with log_file.open("ab") as log:
            self._process = spawn(
                _command(job_file, num_processes=num_processes),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )
        self._messages: queue.Queue[ChildMessage | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the trainer: what a watchdog may kill."""
        return self._process.pid

    @property
    def return_code(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self._process.poll()

    def next_message(self, *, timeout_seconds: float) -> ChildMessage | None:
        """The next message, or None where none came in time or no more will come."""
        try:
            return self._messages.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def request(self, command: str) -> None:
        """Send a command (`stop`, `pause`); it takes effect at the next optimizer step."""
        stdin = self._process.stdin
        if stdin is None or self.return_code is not None:
            return
        try:
            stdin.write(json.dumps({"command": command}).encode() + b"\n")
            stdin.flush()
        except OSError:  # it ended in this moment: its return code tells the rest
            return

    def end(self) -> None:
        """Kill the whole process group and wait; harmless where it is gone.

        One of several whose launcher alone was killed ends by itself: it watches its parent.
        """
        if self.return_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(timeout=KILL_WAIT_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                _close(stream)

    def last_words(self) -> str:
        """The end of what it wrote to its log: the cause of a death it could not report."""
        try:
            with self._log_file.open("rb") as log:
                log.seek(max(self._log_start, self._log_file.stat().st_size - LAST_LOG_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return f"Its log cannot be read: {error}"
        return lines[-1].strip() if lines else ""

    def _read(self, stream: IO[bytes] | None) -> None:
        for line in stream or ():
            try:
                self._messages.put(parse_line(line))
            except (ValidationError, ValueError):
                continue  # a torn last line of a killed child carries nothing
        self._messages.put(None)


def _command(job_file: Path, *, num_processes: int) -> list[str]:
    command = [sys.executable, "-m", "trainer", str(job_file)]
    return command if num_processes == 1 else [*command, f"--processes={num_processes}"]


def _environment() -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **offline, "PYTHONUNBUFFERED": "1"}


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:
        return
