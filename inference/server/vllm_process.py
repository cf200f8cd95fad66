"""One `vllm serve` and its end: with whoever holds it, and with this server, however that ends."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress

logger = logging.getLogger(__name__)
STOP_SECONDS = 20.0
PAUSE_SECONDS = 0.05
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_dying: list[subprocess.Popen[bytes]] = []


class VllmProcess:
    """Runs a command in a process group of its own. Raises `OSError` where there is no such command.

    The process is told to stop when this object is freed, and at the end of this program; the kernel tells
    it should this program be killed.
    """

    def __init__(self, command: Sequence[str], *, url: str, key: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {key}"}
        environment = {**os.environ, "VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}
        self._process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_the_parent,
        )
        weakref.finalize(self, _stop, self._process)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()


def wait_for_the_dead() -> None:
    """Until those that were told to stop are gone, and their memory free; by force after a while."""
    deadline = time.monotonic() + STOP_SECONDS
    while _dying:
        process = _dying.pop()
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        # What it started itself may outlive it.
        _signal(process, number=signal.SIGKILL)
        process.wait()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Called by whoever frees the last reference, the event loop among them: it does not wait."""
    _signal(process, number=signal.SIGTERM)
    _dying.append(process)


def _signal(process: subprocess.Popen[bytes], *, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _die_with_the_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
