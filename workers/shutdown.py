"""How a training run or an evaluation learns that its worker was told to stop.

Celery's warm shutdown waits for the running task, however long. The worker's main process sets an event that
its forked child shares. The runner sees it, has the trainer save, and gives the job back to the queue; an
evaluation keeps what it has and puts its question off, for this host or another to go on with.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

from celery import signals

_stopping = multiprocessing.get_context("fork").Event()


def is_stopping() -> bool:
    """True once this worker was told to stop."""
    return _stopping.is_set()


@signals.worker_init.connect
def _forget(**_: Any) -> None:
    _stopping.clear()


@signals.worker_shutting_down.connect
def _remember(**_: Any) -> None:
    _stopping.set()
