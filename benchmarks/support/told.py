"""What the workers of the queue benchmark tell it, in Redis: who started when, who is idle again."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Any

from celery.signals import task_postrun
from redis import Redis

URL = "BENCHMARK_REDIS_URL"
_begun: set[str] = set()  # in this worker: jobs that were told to have started, until it is idle again


def started_list(contender: str) -> str:
    """Where its starts are told: name and time."""
    return f"{contender}-started"


def idle_list(contender: str) -> str:
    """Where it is told that the worker is free again."""
    return f"{contender}-idle"


def tell_start(contender: str, *, name: str, started: float) -> None:
    """The time was taken before: telling it is not measured."""
    _begun.add(contender)
    _client(os.getpid()).rpush(started_list(contender), f"{name} {started}")


def tell_when_idle(contender: str) -> None:
    """After each task that began a job, with all that the product does behind it: a bell may find none."""

    def tell(**_fields: Any) -> None:
        if contender not in _begun:
            return
        _begun.remove(contender)
        _client(os.getpid()).rpush(idle_list(contender), str(time.monotonic()))

    task_postrun.connect(tell, weak=False)


@lru_cache(maxsize=1)
def _client(_process_id: int) -> Redis:
    return Redis.from_url(os.environ[URL])
