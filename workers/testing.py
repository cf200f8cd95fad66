"""Fakes: a trainer that says what it is told to say, a GPU as full as it is told to be, a context that rings
into the air."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.messages import CheckpointSaved, ChildMessage, Finished, Progress, TrainingResult
from workers.context import Context, Message
from workers.devices import DeviceLoad, DeviceProcess, DeviceUse
from workers.errors import DeviceUnreadable

Line = ChildMessage | Callable[[], None]


class SilentContext(Context):
    """Sends nothing: what is sent is tested with a real broker elsewhere."""

    def send(self, message: Message) -> str:
        """Stands for the message's id."""
        return message.task


class FakeChild:
    """Says its lines one after another; a callable among them is called instead. Then it ends with a code."""

    def __init__(self, lines: Sequence[Line], *, return_code: int = 0, words: str = "") -> None:
        self._lines = list(lines)
        self._return_code = return_code
        self._words = words
        self.requests: list[str] = []
        self.was_ended = False

    def __call__(self, _job_file: Path, *, log_file: Path, num_processes: int = 1) -> FakeChild:
        """Stands for the class: a runner starts it with a job file."""
        del log_file, num_processes
        return self

    @property
    def return_code(self) -> int | None:
        """None while lines are left."""
        return None if self._lines and not self.was_ended else self._return_code

    def next_message(self, *, timeout_seconds: float) -> ChildMessage | None:
        """The next line; never waits."""
        del timeout_seconds
        if not self._lines or self.was_ended:
            return None
        line = self._lines.pop(0)
        if callable(line):
            line()
            return None
        return line

    def request(self, command: str) -> None:
        """Remember."""
        self.requests.append(command)

    def end(self) -> None:
        """Remember."""
        self.was_ended = True

    def last_words(self) -> str:
        """As given."""
        return self._words


def progress(step: int, *, num_steps: int = 10) -> Progress:
    """A report of a step."""
    return Progress(
        step=step,
        num_steps=num_steps,
        epoch=step / num_steps,
        loss=1.0,
        learning_rate=0.001,
        grad_norm=1.0,
        tokens_per_second=100.0,
        num_tokens=step * 100,
        num_unused_rows=max(0, num_steps - step),
        peak_memory_bytes=0,
    )


def saved(step: int, *, path: Path, is_final: bool = False) -> CheckpointSaved:
    """A checkpoint of a step."""
    return CheckpointSaved(path=str(path), step=step, is_final=is_final, weights_sha256=f"{step:064d}")


def finished(state: str = "finished", *, step: int = 10, num_steps: int = 10) -> Finished:
    """The last line of a run that ended well."""
    result = TrainingResult.model_validate(
        {
            "state": state,
            "num_steps": num_steps,
            "step": step,
            "epoch": step / num_steps,
            "num_tokens": 1000,
            "num_unused_rows": num_steps - step,
            "final_checkpoint": None,
            "mean_loss": 1.0,
            "tokens_per_second": 100.0,
            "duration_seconds": 10.0,
        }
    )
    return Finished(result=result)


class FakeDevice:
    """A GPU of 24 GB that is free unless told otherwise."""

    def __init__(
        self,
        *,
        name: str = "gpu-0",
        free_bytes: int = 24 * 10**9,
        processes: tuple[DeviceProcess, ...] = (),
        problem: str = "",
        identity: str = "",
    ) -> None:
        self.name = name
        self.identity = identity
        self.free_bytes = free_bytes
        self.processes = processes
        self.problem = problem

    def use(self) -> DeviceUse:
        """As it was told."""
        if self.problem:
            raise DeviceUnreadable(self.problem)
        return DeviceUse(total_bytes=24 * 10**9, free_bytes=self.free_bytes, processes=self.processes)

    def load(self) -> DeviceLoad:
        """Half busy and lukewarm, unless it has a problem."""
        if self.problem:
            return DeviceLoad(unknown_because=self.problem)
        return DeviceLoad(utilisation=0.5, temperature_celsius=40.0)
