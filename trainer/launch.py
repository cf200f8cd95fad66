"""Several processes for one job on this host: started together, ended together.

`torchrun` does as well, for several hosts too. This is for a supervisor: its processes stay in one process
group, so that one kill reaches all of them (torchrun gives each a session of its own); they meet in a file,
so that no port has to be free; and what the first to fail says by its exit code, this process says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from trainer.ranks import RENDEZVOUS

POLL_SECONDS = 0.05
# The others learn at once that one is gone; this long they may take to end by themselves.
FAREWELL_SECONDS = 2.0
SIGNALLED = 128  # what a shell adds to a signal's number

Children = list[subprocess.Popen[bytes]]


def launch(arguments: Sequence[str], *, num_processes: int) -> int:
    """Run `python -m trainer` so many times on the same arguments; the exit code.

    0 where all ended well, else that of the first that did not; the others are then ended.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-ranks-") as directory:
        children: Children = []
        _pass_on_sigterm(children)
        try:
            for rank in range(num_processes):
                environment = _environment(rank, num_processes=num_processes, store=Path(directory) / "store")
                children.append(_start(arguments, environment=environment))
            return _await(children)
        finally:
            for child in children:
                child.kill()
                child.wait()


def _await(children: Children) -> int:
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed:
            _await_farewell(children)
            return _as_exit_code(failed[0])
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_SECONDS)


def _await_farewell(children: Children) -> None:
    deadline = time.monotonic() + FAREWELL_SECONDS
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)


def _as_exit_code(code: int) -> int:
    return code if code > 0 else SIGNALLED - code


def _start(arguments: Sequence[str], *, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "trainer", *arguments], env=environment)


def _environment(rank: int, *, num_processes: int, store: Path) -> dict[str, str]:
    size = str(num_processes)
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": size,
        RENDEZVOUS: f"file://{store}?rank={rank}&world_size={size}",
    }
    if sys.platform == "linux":  # one host: its name need not lead anywhere
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def _pass_on_sigterm(children: Children) -> None:
    """A request to save and end is for all. Ctrl-C reaches them by itself, so this process only waits."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
