"""How long to wait before trying again: longer each time, and never all at the same moment.

M. Brooker, "Exponential Backoff And Jitter" (2015): the form with equal jitter, of which half is certain.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Draw = Callable[[], float]


@dataclass(frozen=True)
class Backoff:
    """Waits that double from `first_seconds` up to `cap_seconds`."""

    first_seconds: float
    cap_seconds: float

    def wait_seconds(self, *, num_failures: int, draw: Draw = random.random) -> float:
        """After so many failures, 1 or more; between half of the wait and all of it."""
        doublings = min(num_failures - 1, 64)  # 2 ** 64 is beyond every cap
        longest = min(self.cap_seconds, self.first_seconds * 2.0**doublings)
        return longest * (0.5 + 0.5 * draw())
