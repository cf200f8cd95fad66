"""`python -m tests.hosts.role train|further|intel|evaluate`: a host's parts, supervised as by `tandem up`."""

from __future__ import annotations

import os
import signal
import sys
import time

from config.settings import load_settings
from registry.schema import upgrade
from registry.store import Registry
from workers.app import app
from workers.stack.control import TICK_SECONDS, UP_MARKER, start
from workers.stack.gate import write_gate_config
from workers.stack.parts import stack_parts
from workers.stack.supervisor import Supervisor

PARTS = {
    "train": ("control", "beat", "train"),
    "further": ("train",),
    "intel": ("intelligence", "server"),
    "evaluate": ("intelligence",),
}


def main(role: str) -> int:
    """Start, tick, stop."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    settings = load_settings()
    os.environ["TANDEM_HOME"] = str(settings.home)
    settings.paths.prepare()
    supervisor = Supervisor(
        [part for part in stack_parts(settings, celery=app) if part.name in PARTS[role]], settings=settings
    )
    supervisor.claim()
    if role == "train":
        upgrade(Registry(settings.database_url))
    elif role != "further":
        write_gate_config(settings)
    try:
        start(supervisor)
        (settings.paths.run / UP_MARKER).touch()
        while not stopping:
            supervisor.tick()
            time.sleep(TICK_SECONDS)
    finally:
        supervisor.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
