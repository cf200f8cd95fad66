"""A command's end, its last words, and the family that goes with it."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from deploy.runner import run_command

pytestmark = pytest.mark.integration
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


def test_code_and_words_come_back() -> None:
    code = "import sys; print('out'); print('why', file=sys.stderr); sys.exit(23)"
    ended = run_command([sys.executable, "-c", code], timeout_seconds=20, environment=ENVIRONMENT)
    assert (ended.code, ended.output, ended.errors) == (23, "out", "why")


@pytest.mark.parametrize("sleep_seconds", ["0", "60"])
def test_no_child_outlives_the_command_or_its_time(sleep_seconds: str) -> None:
    begun = time.monotonic()
    ended = run_command(
        [sys.executable, "-c", PARENT, sleep_seconds], timeout_seconds=2, environment=ENVIRONMENT
    )
    assert time.monotonic() - begun < 20
    assert ended.code is None
    assert _is_gone(int(ended.output), within_seconds=10)


def _is_gone(process_id: int, *, within_seconds: float) -> bool:
    """Within a time: the kernel ends a killed process a moment later, and then its new parent collects it."""
    try:
        process = psutil.Process(process_id)
        deadline = time.monotonic() + within_seconds
        while time.monotonic() < deadline:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return True
    return False
