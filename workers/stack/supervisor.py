"""Starts the parts, restarts one that dies, and stops all of them in reverse order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil

from config.settings import Settings
from workers.errors import StackError
from workers.stack.parts import Part
from workers.stack.state import (
    ProcessId,
    StackState,
    end_leftovers,
    forget_state,
    identify,
    is_alive,
    read_state,
    write_state,
)

log = logging.getLogger(__name__)

PartState = Literal["waiting", "starting", "up", "restarting", "stopped"]
FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0
READY_SECONDS = 120.0
STABLE_SECONDS = 60.0


@dataclass
class Running:
    """A part and the process that plays it."""

    part: Part
    state: PartState = "waiting"
    process: subprocess.Popen[bytes] | None = None
    num_restarts: int = 0
    started: float = 0.0
    restart_at: float = 0.0
    last_exit: str = ""


class Supervisor:
    """Owns the processes of one stack. Call `tick` every second or so."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.running = {part.name: Running(part) for part in parts}
        self._settings = settings
        self._clock = clock
        self._sleep = sleep

    def claim(self) -> None:
        """Make sure that no other stack uses this home and no other program our ports."""
        run = self._settings.paths.run
        state = read_state(run)
        if state is not None and is_alive(state.supervisor):
            raise StackError(
                f"A stack is up already in {self._settings.home} (process {state.supervisor.pid}).",
                remedy="`tandem down` stops it; TANDEM_HOME names another home.",
            )
        if state is not None:
            end_leftovers(state, wait_seconds=5.0)
            forget_state(run)
        for running in self.running.values():
            if running.part.port is not None:
                refuse_taken_port(running.part.port, name=running.part.name)
        self._record()

    def start(self, names: Sequence[str] | None = None) -> None:
        """Start these parts (all, if none are named) without waiting for them."""
        for name in names or list(self.running):
            running = self.running[name]
            if running.process is None:
                self._spawn(running)
        self._record()

    def wait_ready(
        self, names: Sequence[str] | None = None, *, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until these parts answer; `StackError` with the end of its log for one that does not."""
        wanted = [self.running[name] for name in names or list(self.running)]
        deadline = self._clock() + READY_SECONDS
        while waiting := [running for running in wanted if running.state != "up"]:
            for running in waiting:
                self._check_start(running, deadline=deadline)
            on_change()
            self._sleep(0.2)

    def tick(self) -> None:
        """Notice what died; start it again after a pause that doubles each time."""
        for running in self.running.values():
            if running.process is None:
                continue
            if running.process.poll() is not None:
                self._handle_death(running)
            elif running.state in ("starting", "restarting") and running.part.is_ready():
                running.state = "up"

    def stop(self, *, on_change: Callable[[], None] = lambda: None) -> None:
        """End all parts, last started first, each within its grace; nothing is left behind."""
        for running in reversed(self.running.values()):
            self._end(running)
            on_change()
        forget_state(self._settings.paths.run)

    def _spawn(self, running: Running) -> None:
        logs = self._settings.paths.logs
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{running.part.name}.log").open("ab") as log_file:
            running.process = subprocess.Popen(
                running.part.command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TANDEM_HOME": str(self._settings.home), **running.part.environment},
                start_new_session=True,  # Ctrl-C reaches this process only, which stops them in order
            )
        running.state = "starting" if running.num_restarts == 0 else "restarting"
        running.started = self._clock()

    def _check_start(self, running: Running, *, deadline: float) -> None:
        process = running.process
        if process is None:
            raise StackError(f"{running.part.name} was not started.")
        if process.poll() is not None:
            how = f"exit code {process.returncode}"
            raise StackError(
                f"{running.part.name} ended while starting ({how}): {self._last_words(running)}",
                remedy=f"Its log is {self._settings.paths.logs / running.part.name}.log.",
            )
        if running.part.is_ready():
            running.state = "up"
        elif self._clock() > deadline:
            raise StackError(
                f"{running.part.name} did not answer within {READY_SECONDS:g} s.",
                remedy=f"Its log is {self._settings.paths.logs / running.part.name}.log.",
            )

    def _handle_death(self, running: Running) -> None:
        process = running.process
        now = self._clock()
        if process is not None and running.restart_at <= running.started:
            if now - running.started > STABLE_SECONDS:
                running.num_restarts = 0
            pause = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**running.num_restarts)
            running.last_exit = f"exit code {process.returncode}"
            running.state, running.restart_at = "restarting", now + pause
            log.warning("%s died (%s); it starts again in %g s", running.part.name, running.last_exit, pause)
            _end_family(process.pid)
        if now >= running.restart_at:
            running.num_restarts += 1
            self._spawn(running)
            self._record()

    def _end(self, running: Running) -> None:
        process = running.process
        if process is None:
            return
        family = _family(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=running.part.stop_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _, left = psutil.wait_procs(family, timeout=2.0)
        for child in left:
            child.kill()
        running.state, running.process = "stopped", None

    def _record(self) -> None:
        supervisor = identify("supervisor", pid=os.getpid())
        if supervisor is None:
            raise StackError("This process cannot be identified.")
        write_state(
            self._settings.paths.run, state=StackState(supervisor=supervisor, parts=tuple(self._identities()))
        )

    def _identities(self) -> list[ProcessId]:
        found = [
            identify(name, pid=running.process.pid)
            for name, running in self.running.items()
            if running.process is not None
        ]
        return [identity for identity in found if identity is not None]

    def _last_words(self, running: Running) -> str:
        path = self._settings.paths.logs / f"{running.part.name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it wrote nothing"


def refuse_taken_port(port: int, *, name: str) -> None:
    """`StackError` where another program listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StackError(
                f"Port {port}, meant for {name}, is taken by another program.",
                remedy=f"Stop that program, or choose another with TANDEM_{name.upper()}__PORT.",
            ) from None


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _end_family(pid: int) -> None:
    """End what a dead part left in its process group: pool processes that outlive their worker."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
