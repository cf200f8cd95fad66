"""Commands that go on writing, with real pipes and real signals."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from registry.schema import upgrade
from registry.store import Registry
from registry.testing import add_queued_job
from tasks.testing import BIN, fresh_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

FOLLOW = ("events", "--follow", "--json")
WATCH = ("job", "show", "job-aaaaaa", "--watch", "--json")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    registry = Registry(f"sqlite:///{home / 'tandem.db'}")
    upgrade(registry)
    with registry.transaction() as tx:
        add_queued_job(tx)
    return home


@contextmanager
def started(home: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(BIN / "tandem"), *arguments],
        cwd=home,
        env=fresh_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and everything below inherits that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("arguments", "code"), [(FOLLOW, 0), (WATCH, 130)])
def test_head_gets_its_line_and_the_stream_ends_quietly_though_nothing_more_happens(
    home: Path, arguments: tuple[str, ...], code: int
) -> None:
    command = f"{BIN / 'tandem'} {' '.join(arguments)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=home, env=fresh_environment(home), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert json.loads(ran.stdout)["id"]
    assert (ran.returncode, ran.stderr) == (code, "")


@pytest.mark.parametrize("arguments", [FOLLOW, WATCH])
def test_ctrl_c_ends_it_without_a_trace(home: Path, arguments: tuple[str, ...]) -> None:
    with started(home, *arguments) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
    assert process.returncode == (0 if arguments == FOLLOW else 130)
    assert words == ""


def test_what_another_process_writes_is_streamed_line_by_line(home: Path) -> None:
    registry = Registry(f"sqlite:///{home / 'tandem.db'}")
    with started(home, *FOLLOW) as process:
        assert process.stdout is not None
        last = [json.loads(process.stdout.readline())["id"] for _ in range(3)][-1]
        for number in range(5):
            with registry.transaction() as tx:
                tx.log(kind="T", subject_id=str(number), before=None, after="x", actor=str(os.getpid()))
            assert json.loads(process.stdout.readline())["id"] == last + 1 + number
