"""The trainer's standard output, kept for messages alone.

A library that prints would tear a line of JSON apart. So the stream that messages go to is a private copy
of the original standard output, and whatever else is printed, by Python or below it, lands on standard error.
"""

from __future__ import annotations

import os
import sys
import threading

from trainer.errors import Orphaned
from trainer.messages import ChildMessage, format_line

STDOUT, STDERR = 1, 2


def claim_stdout() -> int:
    """A private descriptor of the original standard output; descriptor 1 is standard error from here on."""
    sys.stdout.flush()
    private = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    return private


class LineWriter:
    """Writes messages to a descriptor, one JSON line each, whole, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def __call__(self, message: ChildMessage) -> None:
        """Write one message; `Orphaned` where nobody reads any more."""
        line = format_line(message)
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError as error:
                raise Orphaned("Nobody reads the trainer's messages any more.") from error
