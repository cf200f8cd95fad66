"""The alternative: a bare Celery application with tandem's Celery settings and one task that does nothing.

celery -A benchmarks.support.bare worker -Q bare -c 1
"""

from __future__ import annotations

import time

from celery import Celery

from benchmarks.support.told import tell_start
from config.settings import load_settings
from workers.celery_settings import celery_settings

NAME = "bare"
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


# Acknowledged on receipt and without a result, as `training.run` is.
@app.task(name="bare.work", acks_late=False, ignore_result=True)
def work(number: str) -> None:
    """Say when it started."""
    tell_start(NAME, name=number, started=time.monotonic())
