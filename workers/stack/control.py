"""`tandem up` and `tandem down`: run the stack in front of a person, in the background, or end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from config.settings import Settings
from registry.schema import upgrade
from registry.store import Registry
from workers.app import app
from workers.errors import StackError
from workers.stack.gate import refresh_gate_config
from workers.stack.parts import stack_parts
from workers.stack.state import end_leftovers, forget_state, is_alive, read_state
from workers.stack.supervisor import Supervisor

TICK_SECONDS = 1.0
START_SECONDS = 150.0
STOP_SECONDS = 120.0
UP_MARKER = "stack.up"


def open_stack(settings: Settings) -> Supervisor:
    """A supervisor for these settings, its home prepared and its registry up to date; nothing runs yet."""
    os.environ["TANDEM_HOME"] = str(settings.home)  # this process's Celery client reads settings too
    settings.paths.prepare()
    refresh_gate_config(settings)
    supervisor = Supervisor(stack_parts(settings, celery=app), settings=settings)
    supervisor.claim()
    upgrade(Registry(settings.database_url))
    return supervisor


def start(supervisor: Supervisor, *, names: list[str] | None = None) -> None:
    """Start Redis, wait for it, then start the rest and wait until each answers."""
    wanted = list(supervisor.running) if names is None else names
    if "redis" in wanted:
        supervisor.start(["redis"])
        supervisor.wait_ready(["redis"])
    supervisor.start(wanted)
    supervisor.wait_ready(wanted)


def run_in_foreground(settings: Settings, *, console: Console) -> None:
    """Start everything, show who is up, and stop all of it on Ctrl-C or SIGTERM."""
    supervisor = open_stack(settings)
    with _stop_signals() as stopping, Live(console=console, auto_refresh=False) as live:

        def show() -> None:
            live.update(stack_table(supervisor), refresh=True)
            if stopping:
                raise KeyboardInterrupt

        try:
            supervisor.start(["redis"] if settings.has_embedded_redis else [])
            supervisor.wait_ready(["redis"] if settings.has_embedded_redis else [], on_change=show)
            supervisor.start()
            supervisor.wait_ready(on_change=show)
            (settings.paths.run / UP_MARKER).touch()
            while True:
                supervisor.tick()
                show()
                time.sleep(TICK_SECONDS)
        except KeyboardInterrupt:
            pass
        finally:
            (settings.paths.run / UP_MARKER).unlink(missing_ok=True)
            supervisor.stop(on_change=lambda: live.update(stack_table(supervisor), refresh=True))
    console.print("Everything is stopped.")


def start_in_background(settings: Settings) -> None:
    """Start a supervisor of its own session and wait until the whole stack is up."""
    settings.paths.prepare()
    running = read_state(settings.paths.run)
    if running is not None and is_alive(running.supervisor):
        raise StackError(f"A stack is up already in {settings.home}.", remedy="`tandem down` stops it.")
    log_path = settings.paths.logs / "stack.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.cli", "up"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TANDEM_HOME": str(settings.home)},
            start_new_session=True,
        )
    _wait_until_up(settings, process=process)


def stop_running(settings: Settings) -> list[str]:
    """End the stack of this home; the names of its parts."""
    state = read_state(settings.paths.run)
    if state is None:
        return []
    names = [part.name for part in state.parts]
    if is_alive(state.supervisor):
        supervisor = psutil.Process(state.supervisor.pid)
        supervisor.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([supervisor], timeout=STOP_SECONDS)
        if not alive:
            return names
    end_leftovers(state, wait_seconds=STOP_SECONDS)
    forget_state(settings.paths.run)
    return names


def stack_table(supervisor: Supervisor) -> Table:
    """Who is up, where, and since how many restarts."""
    table = Table(title="tandem", title_justify="left", caption="Ctrl-C stops all of it.")
    for heading in ("part", "state", "where", "process", "restarts"):
        table.add_column(heading)
    styles = {"up": "green", "restarting": "red", "stopped": "dim"}
    for name, running in supervisor.running.items():
        where = f"127.0.0.1:{running.part.port}" if running.part.port else ""
        style = styles.get(running.state, "yellow")
        pid = str(running.process.pid) if running.process else ""
        restarts = f"{running.num_restarts} ({running.last_exit})" if running.num_restarts else ""
        table.add_row(name, f"[{style}]{running.state}[/]", where, pid, restarts)
    return table


def _wait_until_up(settings: Settings, *, process: subprocess.Popen[bytes]) -> None:
    marker = settings.paths.run / UP_MARKER
    marker.unlink(missing_ok=True)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = (settings.paths.logs / "stack.log").read_text(errors="replace").strip().splitlines()
            raise StackError(f"The stack did not start: {words[-1] if words else 'no reason was given'}")
        if marker.exists():
            return
        time.sleep(0.2)
    raise StackError(
        f"The stack was not up within {START_SECONDS:g} s.",
        remedy=f"Its log is {settings.paths.logs / 'stack.log'}; `tandem down` ends it.",
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM add to the list that this yields, instead of raising at any line."""
    seen: list[int] = []
    before = {
        number: signal.signal(number, lambda signum, _frame: seen.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
