"""`tandem job show JOB --watch`: a bar on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from registry.records import TrainingJob
from registry.status_files import JobStatus
from tasks.api import JobHandle
from tasks.cli.stream import LineStream, lines
from tasks.watching import BarView, View, Watch, detail

INTERRUPTED = 130


def watch_job(handle: JobHandle, *, as_json: bool, timeout_seconds: float | None = None) -> TrainingJob:
    """Show a job until its end. Ctrl-C and a closed pipe end the watch, not the job, with exit 130."""
    with lines() as stream, _view(stream, as_json=as_json) as view:

        def sleep(seconds: float) -> None:
            stream.check_reader()
            time.sleep(seconds)

        watch = Watch(handle.watcher(), timeout_seconds=timeout_seconds, sleep=sleep)
        for watched in watch.changes():
            view.show(watched.line)
        return watched.job
    raise typer.Exit(INTERRUPTED)


class _Lines:
    def __init__(self, stream: LineStream, *, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json

    def show(self, line: JobStatus) -> None:
        if self._as_json:
            self._stream.write(json.dumps(line.model_dump(mode="json"), allow_nan=False, ensure_ascii=False))
        else:
            self._stream.write(f"{line.id} {line.state}  {detail(line)}".rstrip())


@contextmanager
def _view(stream: LineStream, *, as_json: bool) -> Iterator[View]:
    if as_json or not sys.stdout.isatty():
        yield _Lines(stream, as_json=as_json)
        return
    with BarView(Console(file=sys.stdout)) as bar:
        yield bar
