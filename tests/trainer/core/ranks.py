"""Runs jobs in several processes, each a fork of this one: torch is loaded once for all of them.

One line of JSON in, `{"job": ..., "size": 2, "directory": ..., "fault": ...}`; one line out, the exit codes.
What the process of rank r emitted lies in `directory/r.jsonl`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer import process
from trainer.control import FlagControl
from trainer.core import engine  # noqa: F401 - loaded before the first fork
from trainer.core import loss as losses
from trainer.core.run import Run
from trainer.errors import DataError
from trainer.monitoring import probe
from trainer.ranks import RENDEZVOUS
from trainer.wire import LineWriter

advance, answer_loss_sum = Run.advance, losses.answer_loss_sum
LONGEST_SECONDS = 250
Fault = Callable[[FlagControl], None]


def before_step(number: int, act: Callable[[], None]) -> None:
    def advance_after(run: Run) -> Any:
        if run.step + 1 == number:
            act()
        return advance(run)

    Run.advance = advance_after  # type: ignore[method-assign]


def change_loss(change: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
    losses.answer_loss_sum = lambda model, *, batch, **options: change(
        answer_loss_sum(model, batch=batch, **options), batch
    )


def run_out(loss: torch.Tensor, batch: Any) -> torch.Tensor:
    if batch.input_ids.shape[0] > 2:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return loss


class RunsOutBackward(torch.autograd.Function):
    """The loss as it is; memory runs out when its gradient is asked for."""

    @staticmethod
    def forward(_: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(_: Any, *__: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def run_out_backward(loss: torch.Tensor, batch: Any) -> torch.Tensor:
    if batch.input_ids.shape[0] <= 2 or not torch.is_grad_enabled():
        return loss
    result: torch.Tensor = RunsOutBackward.apply(loss)
    return result


def run_out_early(*_: Any, **__: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def not_found(*_: Any, **__: Any) -> Any:
    raise DataError("no such file")


FAULTS: dict[str, Fault] = {
    "stopped": lambda control: before_step(2, lambda: control.ask("stop")),
    "paused": lambda control: before_step(2, lambda: control.ask("pause")),
    "diverged": lambda _: change_loss(lambda loss, _: loss * float("nan")),
    "out_of_memory": lambda _: change_loss(run_out),
    "out_of_memory_backward": lambda _: change_loss(run_out_backward),
    "out_of_memory_early": lambda _: setattr(losses, "answer_loss_sum", run_out_early),
    "out_of_memory_measuring": lambda _: setattr(probe, "_answers", run_out_early),
    "without_suite": lambda _: setattr(probe, "held_out_sequences", not_found),
    "killed": lambda _: before_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL)),
}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(run_all(**asked)) + "\n")
        sys.stdout.flush()


def run_all(*, job: str, size: int, directory: str, fault: str, fault_rank: int) -> list[int]:
    store = Path(directory) / "store"
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            signal.alarm(LONGEST_SECONDS)
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), GLOO_SOCKET_IFNAME="lo")
            os.environ[RENDEZVOUS] = f"file://{store}?rank={rank}&world_size={size}"
            own_fault = fault if rank == fault_rank else ""
            os._exit(run_one(Path(job), output=Path(directory) / f"{rank}.jsonl", fault=own_fault))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def run_one(job: Path, *, output: Path, fault: str) -> int:
    control = FlagControl()
    if fault:
        FAULTS[fault](control)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return process.run(job, emit=LineWriter(descriptor), control=control)


if __name__ == "__main__":
    main()
