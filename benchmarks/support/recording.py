"""Takes down what tandem says to its database for one job, and the job file, for `replay` to play again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tasks.training
from benchmarks.support.replay import recording_path
from registry import lean
from registry.messages import JobBell
from registry.records import TrainingJob
from workers.context import Context
from workers.runner import TrainingRun
from workers.testing import FakeChild, finished

Statements = list[tuple[str, list[Any]]]


def take_down(context: Context, *, submit: Callable[[int], str]) -> None:
    """Submit one job and run it, in this process; what is said until its trainer would start is kept."""
    with _listening() as submission:
        name = submit(0)
    kept: dict[str, Any] = {"submission": submission}
    with _listening() as said:

        def start_child(job_file: Path, *, log_file: Path, num_processes: int) -> FakeChild:
            kept.update(start=list(said), job_file=job_file.read_text())
            return FakeChild([finished()])(job_file, log_file=log_file, num_processes=num_processes)

        with patch.object(tasks.training, "TrainingRun", partial(TrainingRun, start_child=start_child)):
            tasks.training.train(JobBell(job_id=name), context)
    with context.registry.reading() as tx:
        kept["names"] = [tx.get(TrainingJob, name).dedupe_key, name]
    recording_path().write_text(json.dumps(kept))


@contextmanager
def _listening() -> Iterator[Statements]:
    said: Statements = []
    plain = lean._run

    def run(connection: Any, *, sql: str, parameters: Any) -> Any:
        said.append((sql, list(parameters)))
        return plain(connection, sql=sql, parameters=parameters)

    with patch.object(lean, "_run", run):
        yield said
