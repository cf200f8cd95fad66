"""What a person at a terminal sees of a run: a progress bar and plain sentences."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer import messages
from trainer.messages import ChildMessage


class TerminalReporter:
    """Shows messages on a terminal. Use it as a context manager: the bar is drawn inside."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("Loading", total=None, numbers="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, message: ChildMessage) -> None:
        """Show one message."""
        if isinstance(message, messages.Progress):
            self._bar.update(self._task, completed=message.step, numbers=_numbers(message))
            return
        if isinstance(message, messages.Started):
            first = message.resumed_from_step or 0
            self._bar.update(self._task, description="Training", total=message.num_steps, completed=first)
        self._bar.console.print(sentence(message), markup=False, highlight=False)


def sentence(message: ChildMessage) -> str:
    """A message in words."""
    if isinstance(message, messages.Started):
        return _started(message)
    if isinstance(message, messages.CheckpointSaved):
        return f"Checkpoint of step {message.step}: {message.path}"
    if isinstance(message, messages.Warned):
        return f"Warning: {message.message}"
    if isinstance(message, messages.Finished):
        return _finished(message.result)
    if isinstance(message, messages.Failed):
        return f"Failed ({message.kind}): {message.message} {message.remedy}".strip()
    return f"Step {message.step} of {message.num_steps}: {_numbers(message)}"


def _started(message: messages.Started) -> str:
    dropped = f", {message.num_dropped_rows} too long and left out" if message.num_dropped_rows else ""
    dropped += f", {message.num_truncated_rows} too long and cut off" if message.num_truncated_rows else ""
    resumed = f", going on after step {message.resumed_from_step}" if message.resumed_from_step else ""
    return f"{message.num_rows} rows{dropped}; {message.num_steps} steps on {message.device}{resumed}."


def _numbers(message: messages.Progress) -> str:
    rate = "" if message.tokens_per_second is None else f", {message.tokens_per_second:,.0f} tokens/s"
    return f"loss {message.loss:.4f}{rate}"


def _finished(result: messages.TrainingResult) -> str:
    loss = "" if result.mean_loss is None else f", mean loss {result.mean_loss:.4f}"
    where = f" Checkpoint: {result.final_checkpoint}" if result.final_checkpoint else " Nothing was saved."
    return (
        f"{result.state.capitalize()} after step {result.step} of {result.num_steps} "
        f"in {result.duration_seconds:.1f} s{loss}.{where}"
    )
