"""tandem's own worker with a trainer that does nothing: everything else is the real path of a job.

celery -A benchmarks.support.idle_trainer worker -Q high,normal,low -c 1
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from redis import Redis

import tasks.training
from trainer.messages import Finished, TrainingResult
from workers.app import app
from workers.runner import TrainingRun
from workers.testing import FakeChild

__all__ = ["app"]

RESULT = TrainingResult(
    state="finished",
    num_steps=1,
    step=1,
    num_tokens=1,
    num_unused_rows=0,
    final_checkpoint=None,
    mean_loss=1.0,
    duration_seconds=0.0,
)


def start_child(job_file: Path, *, log_file: Path) -> FakeChild:
    """Say when the trainer would have been started; it finishes at once."""
    started = time.monotonic()
    with Redis.from_url(os.environ["BENCHMARK_REDIS_URL"]) as client:
        client.rpush("tandem-started", f"{job_file.stem} {started}")
    return FakeChild([Finished(result=RESULT)])(job_file, log_file=log_file)


tasks.training.TrainingRun = partial(TrainingRun, start_child=start_child)  # type: ignore[assignment,misc]
