"""What status, control, watching and checkpoints cost the training engine: the same steps with and without.

Each contender takes the same number of steps on the same batches, from its first step to the report of its
last. `nothing` neither reports nor is asked nor saves on the way; `status and control` writes its messages to
a pipe and is asked before each step, as under a worker; `and watching` measures held-out rows besides, as
often as its bound allows; the others save checkpoints as well, once beside the steps that follow and once at
once. Contenders take turns; the first is measured twice, which shows the noise. CPU time counts all threads,
what a second core does beside the steps included.

A difference of two runs is as noisy as they are. So each run also says which share of its time the training
thread spent inside what is no step: reporting with watching, asking what is wanted, saving.

What the worker does with a report (time left, alerts, the device, the status file) lies in another process:
its CPU time is measured by itself.

    python -m benchmarks.overhead [--seconds 20] [--repeats 5] [--checkpoint-seconds 10] [--sizes 0.8M 9M]
        [--validation-rows 8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.material import SIZES, Material, make_material, make_model, write_rows
from benchmarks.support.trainers import Deadline
from registry.testing import add_queued_job, make_registry
from trainer.control import FlagControl
from trainer.core.engine import Emit, TrainerEngine
from trainer.core.report import Reporter
from trainer.core.saver import Saver
from trainer.messages import CheckpointSaved, ChildMessage, Progress, Started
from trainer.wire import LineWriter
from workers.devices import CpuDevice
from workers.projections import write_training_status
from workers.run_watch import RunWatch
from workers.testing import progress

CALIBRATION_SECONDS = 4.0
NUM_REPORTS = 100
# What the engine calls between two steps.
NO_STEPS: tuple[tuple[type[Any], str], ...] = (
    (Reporter, "after_step"),
    (TrainerEngine, "_request"),
    (Saver, "save"),
    (Saver, "hear"),
)
SILENCE = {"report_every_seconds": 1e9}
NOTHING, AGAIN = "nothing", "nothing, again"


@dataclass(frozen=True)
class Cost:
    """Of a run's steps. `watching_seconds` is what the measurements say of themselves, `inside_seconds` what
    the training thread spent inside all that is no step."""

    wall_seconds: float
    cpu_seconds: float
    num_checkpoints: int
    num_measurements: int
    watching_seconds: float
    inside_seconds: float


class Stopwatch:
    """Hears a run, and passes on what it heard."""

    def __init__(self, emit: Emit) -> None:
        self.inside_seconds = 0.0
        self._emit = emit
        self._inside_at_end = 0.0
        self._began = self._ended = (0.0, 0.0)
        self._num_checkpoints = 0
        self._measured: dict[int, float] = {}

    def __call__(self, message: ChildMessage) -> None:
        """Note when steps began and when the last was reported."""
        self._emit(message)
        now = (time.perf_counter(), time.process_time())
        if isinstance(message, Started):
            self._began = now
        if isinstance(message, Progress):
            self._ended = now
            self._inside_at_end = self.inside_seconds
            if (measurement := message.micro_evaluation) is not None:
                self._measured[measurement.step] = measurement.duration_seconds
        self._num_checkpoints += isinstance(message, CheckpointSaved) and not message.is_final

    def cost(self) -> Cost:
        """Between the two."""
        wall, cpu = (after - before for before, after in zip(self._began, self._ended, strict=True))
        return Cost(
            wall_seconds=wall,
            cpu_seconds=cpu,
            num_checkpoints=self._num_checkpoints,
            num_measurements=len(self._measured),
            watching_seconds=sum(self._measured.values()),
            inside_seconds=self._inside_at_end,
        )


def main() -> int:
    """A table a size."""
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        print(
            f"worker, a report: {_worker_seconds_a_report(Path(name)) * 1e3:.1f} ms of CPU beside the trainer"
        )
        for size in options.sizes:
            directory = Path(name) / size
            directory.mkdir()
            rows = write_rows(directory / "rows.jsonl", lengths="long-tailed")
            model = make_model(directory / "model", size=size)
            material = make_material(directory, model=model, rows=rows, tokens_per_batch=2048)
            _compare(material, size=size, options=options)
    return 0


def _compare(material: Material, *, size: str, options: argparse.Namespace) -> None:
    seconds_a_step = _seconds_a_step(material)
    num_steps = max(2, round(options.seconds / seconds_a_step))
    every = max(1, round(options.checkpoint_seconds / seconds_a_step))
    print(
        f"\n{size}: {num_steps} steps, a report a second, a checkpoint every {every} steps "
        f"(about {every * seconds_a_step:.0f} s); {options.repeats} runs each in turns",
        flush=True,
    )
    watching = {"monitoring": _watching(material, num_rows=options.validation_rows)}
    saving = {"checkpoint_every_steps": every}
    contenders: dict[str, dict[str, Any]] = {
        NOTHING: {"monitoring": SILENCE},
        "status and control": {},
        "and watching": watching,
        "and checkpoints, beside": {**watching, "output": {**saving, "overlap_writing": "on"}},
        "and checkpoints, at once": {**watching, "output": {**saving, "overlap_writing": "off"}},
        AGAIN: {"monitoring": SILENCE},
    }
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, sections in contenders.items():
            costs[name].append(_run(material, num_steps=num_steps, sections=sections))
    _print_table(costs)


def _watching(material: Material, *, num_rows: int) -> dict[str, Any]:
    """As often as the bound on its share allows: the interval, which would spare most of it, is left out."""
    held_out = write_rows(material.directory / "suite.jsonl", lengths="even")
    return {
        "validation_path": str(held_out),
        "num_validation_rows": num_rows,
        "validate_every_seconds": 0,
    }


def _worker_seconds_a_report(directory: Path) -> float:
    """CPU time of what a worker does with one report, its look at device and registry included."""
    registry = make_registry(directory)
    with registry.transaction() as tx:
        job = add_queued_job(tx)
    watch = RunWatch(job, registry=registry, device=CpuDevice())
    started = time.process_time()
    for step in range(1, NUM_REPORTS + 1):
        known = watch.take(progress(step, num_steps=NUM_REPORTS))
        watch.look_around()
        write_training_status(
            directory, job=job.changed(progress=known), now=registry.clock(), surroundings=watch.surroundings
        )
    return (time.process_time() - started) / NUM_REPORTS


def _seconds_a_step(material: Material) -> float:
    deadline = Deadline(CALIBRATION_SECONDS)
    result = TrainerEngine(emit=deadline.hear, control=deadline).run_job(material.job())
    return (deadline.last_report[0] - deadline.started) / result.step


def _run(material: Material, *, num_steps: int, sections: dict[str, Any]) -> Cost:
    job = material.job(hyperparameters={"max_steps": num_steps}, **sections)
    with _pipe() as emit:
        watch = Stopwatch(emit)
        with ExitStack() as stack:
            for owner, name in NO_STEPS:
                stack.enter_context(_counted(owner, name=name, watch=watch))
            TrainerEngine(emit=watch, control=FlagControl()).run_job(job)
    return watch.cost()


@contextmanager
def _counted(owner: type[Any], *, name: str, watch: Stopwatch) -> Iterator[None]:
    """Inside this block the time spent in a method counts as no step's."""
    inner = getattr(owner, name)

    def count(*positional: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*positional, **named)
        finally:
            watch.inside_seconds += time.perf_counter() - started

    setattr(owner, name, count)
    try:
        yield
    finally:
        setattr(owner, name, inner)


@contextmanager
def _pipe() -> Iterator[Emit]:
    """Lines as the trainer's process writes them, to somebody who reads them."""
    reading, writing = os.pipe()

    def read() -> None:
        while os.read(reading, 1 << 16):
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield LineWriter(writing)
    finally:
        os.close(writing)
        reader.join()
        os.close(reading)


def _print_table(costs: dict[str, list[Cost]]) -> None:
    """Each run is compared with the run of `nothing` of its own turn."""
    print(f"{'':<26} {'wall':>8} {'CPU':>8}   over nothing: wall (least to most) {'CPU (least to most)':>34}")
    for name, found in costs.items():
        walls = [
            one.wall_seconds / base.wall_seconds - 1 for one, base in zip(found, costs[NOTHING], strict=True)
        ]
        cpus = [
            one.cpu_seconds / base.cpu_seconds - 1 for one, base in zip(found, costs[NOTHING], strict=True)
        ]
        wall = statistics.median(one.wall_seconds for one in found)
        cpu = statistics.median(one.cpu_seconds for one in found)
        print(
            f"{name:<26} {wall:6.2f} s {cpu:6.2f} s {_spread(walls):>36} {_spread(cpus):>36}"
            f"   {found[0].num_checkpoints} checkpoints, {_watched(found)}",
            flush=True,
        )


def _watched(found: list[Cost]) -> str:
    num_measurements = statistics.median(one.num_measurements for one in found)
    share = statistics.median(one.watching_seconds / one.wall_seconds for one in found)
    inside = [one.inside_seconds / one.wall_seconds for one in found]
    return f"{num_measurements:g} measurements ({share:.1%}); inside what is no step {_spread(inside)}"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):+.1%} ({min(values):+.1%} to {max(values):+.1%})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--validation-rows", type=int, default=8, help="that watching measures by")
    parser.add_argument("--checkpoint-seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.8M", "9M"])
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
