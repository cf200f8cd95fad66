"""Standard input as the trainer's leash: commands come down it, and when it breaks the trainer ends.

A trainer whose supervisor died would train on unseen beside the one that takes its place, and both would
write the same checkpoints. The pipe closes with the supervisor however that dies, by SIGKILL too, so its
end is the signal.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from registry.records import Record
from trainer.control import FlagControl, Request

READ_BYTES = 4096
PARENT_SECONDS = 0.5


def watch_parent(*, on_gone: Callable[[], None]) -> None:
    """Call `on_gone`, from a thread of its own, when the process that started this one is gone.

    Of several processes the first alone reads the supervisor's pipe; all of them end with their launcher.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        on_gone()

    threading.Thread(target=watch, name="parent", daemon=True).start()


class Command(Record):
    """One line of the control pipe: `{"command": "stop"}`."""

    command: Request


class Leash:
    """Reads commands from a descriptor in a thread of its own.

    `stop` and `pause` reach `control` and take effect at the next step boundary. Where the pipe ends,
    `on_broken` is called from that thread at once: it must end the process without another word.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        control: FlagControl,
        warn: Callable[[str], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._descriptor = descriptor
        self._control = control
        self._warn = warn
        self._on_broken = on_broken
        self._is_released = False

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self.follow, name="leash", daemon=True).start()

    def release(self) -> None:
        """The result is about to be said: whatever the pipe does from here on means nothing."""
        self._is_released = True

    def follow(self) -> None:
        """Read until the pipe ends."""
        for line in self._lines():
            if line.strip() and not self._is_released:
                self._obey(line)
        if not self._is_released:
            self._on_broken()

    def _obey(self, line: bytes) -> None:
        try:
            self._control.ask(Command.model_validate_json(line).command)
        except ValidationError:
            self._warn(f"Not a command: {line[:80]!r}. Known are stop and pause.")

    def _lines(self) -> Iterator[bytes]:
        # os.read, not sys.stdin: a thread that waits inside a buffered reader cannot be left at exit.
        pending = b""
        while chunk := self._read():
            *lines, pending = (pending + chunk).split(b"\n")
            yield from lines

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, READ_BYTES)
        except OSError:
            return b""
