"""Support for tests against a real stack: start it as a user would, reach it by every door, watch it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from config.settings import Settings, setting_names
from registry.store import Registry
from tasks.api import Tandem
from tasks.demo.plan import Material
from workers.stack.state import read_state

BIN = Path(sys.executable).parent
POLL_SECONDS = 0.05
# Short, so that a test of a killed worker takes seconds; the rules are those of the defaults.
QUICK = {
    "TANDEM_TRAINING__LEASE_SECONDS": "6",
    "TANDEM_TRAINING__HEARTBEAT_SECONDS": "1",
    "TANDEM_TRAINING__REPORT_EVERY_SECONDS": "0.1",
    "TANDEM_SCHEDULE__SWEEP_SECONDS": "2",
    "TANDEM_SCHEDULE__INBOX_SECONDS": "1",
    "TANDEM_SCHEDULE__INBOX_SETTLE_SECONDS": "0.5",
}


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fresh_environment(home: Path) -> dict[str, str]:
    """An environment for a stack of its own: free ports, quick loops, no setting of the caller's."""
    ports = {f"TANDEM_{part}__PORT": str(free_port()) for part in ("REDIS", "SERVER", "FLOWER")}
    inherited = {name: value for name, value in os.environ.items() if name not in setting_names()}
    return {**inherited, **QUICK, **ports, "TANDEM_HOME": str(home)}


@dataclass
class StatusReader:
    """Reads every status file all the time; whatever is not strict JSON at any moment is remembered."""

    directory: Path
    problems: list[str] = field(default_factory=list)
    num_reads: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stop` is set."""
        while not self.stop.wait(POLL_SECONDS):
            for path in self.directory.glob("*.json"):
                try:
                    json.loads(path.read_text(), parse_constant=_refuse)
                except (ValueError, OSError) as error:
                    self.problems.append(f"{path.name}: {error}")
                self.num_reads += 1


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


@dataclass
class Stack:
    """A running stack and the ways a user reaches it."""

    work: Path
    environment: dict[str, str]
    settings: Settings
    material: Material
    reader: StatusReader

    @property
    def client(self) -> Tandem:
        """The Python API."""
        return Tandem(self.settings)

    @property
    def registry(self) -> Registry:
        """The registry of the stack."""
        return self.client.context.registry

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A command in the stack's directory and environment."""
        return run(*command, cwd=self.work, environment=self.environment, timeout=timeout)

    def tandem(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `tandem` command."""
        return self.run("tandem", *arguments)

    def part(self, name: str) -> psutil.Process:
        """The process that plays a part."""
        state = read_state(self.settings.paths.run)
        parts = {} if state is None else {part.name: part for part in state.parts}
        return psutil.Process(parts[name].pid)

    def write_words(self, name: str, *, num_rows: int, skip: int = 0) -> Path:
        """A training file of its own in the working directory."""
        lines = self.material.training_file("words-3-to-5").read_text().splitlines()[skip : skip + num_rows]
        path = self.work / name
        path.write_text("\n".join(lines) + "\n")
        return path


def run(
    *command: str, cwd: Path, environment: dict[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """An installed program, its output captured."""
    program = str(BIN / command[0])
    return subprocess.run(
        [program, *command[1:]],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def wait_for(what: Callable[[], object], *, seconds: float, message: str) -> None:
    """Until it is true; `TimeoutError` with the message after that many seconds."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {message}")
        time.sleep(0.1)


def left_behind(home: Path) -> list[str]:
    """Processes that still work in this home."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            mine = process.environ().get("TANDEM_HOME") == str(home) and process.pid != os.getpid()
        except psutil.Error:
            continue
        if mine or str(home) in " ".join(process.info["cmdline"] or []):
            found.append(" ".join(process.info["cmdline"] or []))
    return found
