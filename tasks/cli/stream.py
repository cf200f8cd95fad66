"""A stream of lines for `jq` and `head`: flushed line by line, and ended quietly when nobody reads on."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class ReaderGone(Exception):
    """Nobody reads the output any more: not an error, only the end."""


class LineStream:
    """Writes lines to standard output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        """A line, at once; `ReaderGone` where the pipe is closed."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except BrokenPipeError:
            raise ReaderGone from None

    def check_reader(self) -> None:
        """`ReaderGone` where the other end of the pipe was closed, though there is nothing to write."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError, AttributeError):
            return  # no real file: a test, or a program that captures it
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(found & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, found in poll.poll(0)):
            raise ReaderGone


@contextmanager
def lines() -> Iterator[LineStream]:
    """A stream that ends without a trace on Ctrl-C and on a closed pipe."""
    try:
        yield LineStream(sys.stdout)
    except ReaderGone:
        # What is still buffered would raise again when the interpreter flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return
