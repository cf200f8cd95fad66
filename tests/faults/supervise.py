"""`python -m tests.faults.supervise`: the parts that train, supervised as in `tandem up`, until SIGTERM."""

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
from workers.stack.parts import stack_parts
from workers.stack.supervisor import Supervisor

PARTS = ("redis", "control", "beat", "train")
UNLOGGED = "FAULTS_UNLOGGED_REDIS"  # set: Redis has no append-only file


def main() -> int:
    """Start, tick, stop."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    settings = load_settings()
    os.environ["TANDEM_HOME"] = str(settings.home)
    settings.paths.prepare()
    parts = [part for part in stack_parts(settings, celery=app) if part.name in PARTS]
    if UNLOGGED in os.environ:
        config = settings.paths.run / "redis" / "redis.conf"
        config.write_text(config.read_text().replace("appendonly yes", "appendonly no"))
    supervisor = Supervisor(parts, settings=settings)
    supervisor.claim()
    upgrade(Registry(settings.database_url))
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
    sys.exit(main())
