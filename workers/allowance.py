"""A share of time that a side work may take: at once where little is going on, seldom where much is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Allowance:
    """Grants a work while it has taken less than `share` of the time, `capacity_seconds` ahead at most.

    What is refused is not owed: only a work that is done again anyhow, such as a projection, may ask here.
    """

    def __init__(
        self, *, share: float, capacity_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._capacity = self._left = capacity_seconds
        self._monotonic = monotonic
        self._asked = monotonic()
        self._lock = threading.Lock()

    @contextmanager
    def spending(self) -> Iterator[bool]:
        """True where the work may be done now; its time inside the block is what it costs."""
        began = self._monotonic()
        with self._lock:
            self._left = min(self._capacity, self._left + self._share * (began - self._asked))
            self._asked = began
            is_granted = self._left > 0
        try:
            yield is_granted
        finally:
            if is_granted:
                with self._lock:
                    self._left -= self._monotonic() - began
