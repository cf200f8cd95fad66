"""How a training run learns that its worker was told to stop.

Celery's warm shutdown waits for the running task. The worker's main process sets an event that its forked
child shares; the runner sees it, has the trainer save, and gives the job back to the queue.
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
