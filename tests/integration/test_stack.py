"""`tandem up` in front of a person: it shows who is up, and Ctrl-C ends all of it."""

import signal
import subprocess
from pathlib import Path

import pytest

from tasks.testing import BIN, fresh_environment, left_behind, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_the_stack_in_front_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    environment = fresh_environment(tmp_path / "var")
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / "tandem"), "up"], cwd=tmp_path, env=environment, stdout=output, stderr=output
        )
    wait_for((tmp_path / "var" / "run" / "stack.up").exists, seconds=150, message="the stack is up")
    process.send_signal(number)
    assert process.wait(timeout=120) == 0
    shown = (tmp_path / "output").read_text()
    for part in ("redis", "control", "intelligence", "server", "beat", "flower", "train"):
        assert part in shown
    assert environment["TANDEM_SERVER__PORT"] in shown
    assert "Everything is stopped." in shown
    assert "Traceback" not in shown
    assert left_behind(tmp_path / "var") == []
