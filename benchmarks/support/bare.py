"""The alternative: a bare Celery application on the same Redis, with one task that does nothing.

celery -A benchmarks.support.bare worker -Q bare -c 1
"""

from __future__ import annotations

import os
import time

from celery import Celery
from redis import Redis

app = Celery("bare", broker=os.environ.get("BENCHMARK_REDIS_URL"))
app.conf.task_default_queue = "bare"
app.conf.broker_connection_retry_on_startup = True
app.conf.task_ignore_result = True


@app.task(name="bare.work")
def work(number: int) -> None:
    """Say when it started."""
    started = time.monotonic()
    with Redis.from_url(os.environ["BENCHMARK_REDIS_URL"]) as client:
        client.rpush("bare-started", f"{number} {started}")
