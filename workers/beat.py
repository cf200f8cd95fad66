"""The clock of the loops, unmoved when the host's clock is set.

Celery's beat compares wall-clock times: a clock that is set back by an hour would silence every loop, the
sweep that mends everything else included, for that hour. Nothing is kept on disk either, so that a beat
that starts again never finds a tick that is due tomorrow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.beat import Scheduler

log = logging.getLogger(__name__)

JUMP_SECONDS = 1.0


class SteadyScheduler(Scheduler):
    """Beat's scheduler in memory; when the wall clock jumps, every interval begins anew."""

    def __init__(
        self,
        *args: Any,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()
        super().__init__(*args, **options)

    def setup_schedule(self) -> None:
        """Take the schedule from the settings."""
        self.merge_inplace(self.app.conf.beat_schedule)

    def tick(self, *args: Any, **options: Any) -> float:
        """Run what is due; the seconds until the next look."""
        offset = self._wall() - self._steady()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) > JUMP_SECONDS:
            log.warning("the host's clock was set by %+.1f s; every loop begins anew", jump)
            self._begin_anew()
        return float(super().tick(*args, **options))

    def _begin_anew(self) -> None:
        for entry in self.schedule.values():
            entry.last_run_at = entry.default_now()
        self._heap = None  # it is ordered by the times of before
