"""Hands a run's messages to tools, on a thread of its own: none of them can stop or slow training.

A tool that raises is warned about once and told nothing more. Numbers wait in a bounded queue; what finds
it full is dropped and counted. At the end of a run the tools have a few seconds to finish, then it ends
without them.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from registry.progress import MicroEvaluation
from trainer.config.job import JobConfig
from trainer.messages import ChildMessage, Progress, Started, Warned
from trainer.monitoring.tools import ReportedRun, Settings, Tracker, make_trackers

MAX_WAITING = 1000
FINISH_SECONDS = 30.0  # a worker that must stop gives a trainer 60 to save and end

Emit = Callable[[ChildMessage], None]


class Tracking:
    """Emits every message, and tells the tools what is theirs. A context manager: the thread lives inside."""

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        *,
        config: JobConfig,
        emit: Emit,
        finish_seconds: float,
    ) -> None:
        self._trackers = dict(trackers)
        self._working: dict[str, Tracker] = {}
        self._measured_step = -1
        self._config = config
        self._emit = emit
        self._finish_seconds = finish_seconds
        self._waiting: queue.Queue[ChildMessage | None] = queue.Queue(maxsize=MAX_WAITING)
        self._num_dropped = 0
        self._is_good, self._is_over = True, False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def __enter__(self) -> Self:
        if self._trackers:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._trackers:
            return
        self._is_good = kind is None
        self._end()
        if self._num_dropped:
            self._warn(f"The tools of monitoring.report_to were too slow for {self._num_dropped} reports.")
        if self._thread.is_alive():
            names = ", ".join(self._trackers)
            self._warn(f"{names}: not done after {self._finish_seconds:g} s; the run ends without.")
        self._is_over = True

    def __call__(self, message: ChildMessage) -> None:
        """Emit a message; tools hear of it later."""
        self._emit(message)
        if self._trackers and isinstance(message, Started | Progress):
            self._put(message)

    def _put(self, message: ChildMessage) -> None:
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._num_dropped += 1

    def _end(self) -> None:
        started = time.monotonic()
        try:
            self._waiting.put(None, timeout=self._finish_seconds)
        except queue.Full:
            return
        self._thread.join(max(0.0, self._finish_seconds - (time.monotonic() - started)))

    def _work(self) -> None:
        while (message := self._waiting.get()) is not None:
            if isinstance(message, Started):
                self._start(message)
            elif isinstance(message, Progress):
                self._log(message)
        self._each(lambda tool: tool.finish(is_good=self._is_good))

    def _start(self, started: Started) -> None:
        run = reported_run(self._config, resumed_from_step=started.resumed_from_step)
        self._working = dict(self._trackers)
        self._each(lambda tool: tool.start(run))

    def _log(self, report: Progress) -> None:
        """A measurement is told once, with its own step, before the report that brings it."""
        measured = report.micro_evaluation
        if measured is not None and measured.step > self._measured_step:
            self._measured_step = measured.step
            found = measurements_of(measured)
            self._each(lambda tool: tool.log(found, step=measured.step))
        numbers = numbers_of(report)
        self._each(lambda tool: tool.log(numbers, step=report.step))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        """Those that raise are told nothing more."""
        self._working = {
            name: tool for name, tool in self._working.items() if self._did(name, act=partial(act, tool))
        }

    def _did(self, name: str, *, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a tool does, the run goes on
            self._warn(f"{name} is told nothing more: {type(error).__name__}: {error}")
            return False
        return True

    def _warn(self, message: str) -> None:
        if self._is_over:  # the last word of the run is said
            return
        self._emit(Warned(message=message))


def tracking(config: JobConfig, *, emit: Emit) -> Tracking:
    """The tools that a job names, on the first process of a run alone; `ConfigError` where one is missing."""
    is_first = os.environ.get("RANK", "0") == "0"
    trackers = make_trackers(config.monitoring.report_to) if is_first else {}
    return Tracking(trackers, config=config, emit=emit, finish_seconds=FINISH_SECONDS)


def reported_run(config: JobConfig, *, resumed_from_step: int | None = None) -> ReportedRun:
    """A job as tools know it: by its id, else by the name of its directory of checkpoints."""
    directory = config.output.checkpoints_dir
    settings: Settings = {
        **{
            f"hyperparameters/{name}": str(value) if value is None or isinstance(value, bool) else value
            for name, value in config.hyperparameters.model_dump(mode="json").items()
        },
        "model": str(config.model.path),
        "max_length": config.model.max_length,
        "profile": config.profile.name,
        "dataset": config.data.dataset_id or str(config.data.path),
    }
    return ReportedRun(
        name=config.job_id or directory.name,
        directory=config.monitoring.logs_dir or directory.parent / "logs",
        settings=settings,
        resumed_from_step=resumed_from_step,
    )


def numbers_of(report: Progress) -> dict[str, float]:
    """What a report says, by name; what is unknown is left out."""
    found: dict[str, float | None] = {
        "train/loss": report.loss,
        "train/smoothed_loss": report.smoothed_loss,
        "train/learning_rate": report.learning_rate,
        "train/grad_norm": report.grad_norm,
        "train/epoch": report.epoch,
        "train/num_tokens": report.num_tokens,
        "train/tokens_per_second": report.tokens_per_second,
        "train/peak_memory_bytes": report.peak_memory_bytes,
        "train/num_alerts": len(report.alerts),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def measurements_of(measured: MicroEvaluation) -> dict[str, float]:
    """The same of a measurement: nothing where it came to nothing."""
    found = {
        "validation/loss": measured.validation_loss,
        "validation/gap": measured.gap,
        "validation/token_accuracy": measured.validation_accuracy,
        "train/token_accuracy": measured.training_accuracy,
    }
    return {name: estimate.value for name, estimate in found.items() if estimate is not None}
