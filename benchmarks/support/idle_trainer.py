"""tandem's own worker with a trainer that does nothing: everything else is the real path of a job.

celery -A benchmarks.support.idle_trainer worker -Q high,normal,low -c 1
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import tasks.training
from benchmarks.support.told import tell_start, tell_when_idle
from workers.app import app
from workers.runner import TrainingRun
from workers.testing import FakeChild, finished

__all__ = ["app"]

NAME = "tandem"


def start_child(job_file: Path, *, log_file: Path, num_processes: int) -> FakeChild:
    """Say when the trainer would have been started; it finishes at once."""
    tell_start(NAME, name=job_file.stem, started=time.monotonic())
    return FakeChild([finished()])(job_file, log_file=log_file, num_processes=num_processes)


tasks.training.TrainingRun = partial(TrainingRun, start_child=start_child)  # type: ignore[assignment,misc]
tell_when_idle(NAME)
