"""The alternative: a bare Celery application with tandem's Celery settings and one task that does nothing.

It plays four contenders, each with a worker of its own. For `bare` the message is acknowledged on receipt,
as that of `training.run` is; for `durable` when the work is done, as far as Celery can keep a job. `least` is
as `bare`, with the least that keeping a job in a database costs, `replay` with all that tandem's statements
and files cost.
"""

from __future__ import annotations

import os
import time

from celery import Celery

from benchmarks.support import least, replay
from benchmarks.support.told import tell_start
from config.settings import load_settings
from workers.celery_settings import celery_settings

NAME, DURABLE, LEAST, REPLAY = "bare", "durable", "least", "replay"
CLAIMS = {LEAST: least.claim, REPLAY: replay.claim}
CONTENDER = "BENCHMARK_CONTENDER"  # whom a worker works for
# What names tandem's own tasks and queues; all else is the same.
LEFT_OUT = {
    "include",
    "task_queues",
    "task_routes",
    "task_create_missing_queues",
    "beat_schedule",
    "beat_scheduler",
}

app = Celery(NAME, set_as_current=False)


def configure() -> None:
    """Take tandem's settings."""
    settings = celery_settings(load_settings())
    app.conf.update({name: value for name, value in settings.items() if name not in LEFT_OUT})
    app.conf.task_default_queue = NAME


def contender() -> str:
    """For whom this worker works."""
    return os.environ.get(CONTENDER, NAME)


@app.task(name="bare.work", acks_late=contender() == DURABLE, ignore_result=True)
def work(number: str) -> None:
    """Say when it started, which for those that keep a row is when it is theirs."""
    if contender() in CLAIMS:
        CLAIMS[contender()](number)
    tell_start(contender(), name=number, started=time.monotonic())
    if contender() == REPLAY:
        replay.end(number)
