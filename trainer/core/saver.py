"""When a run's checkpoints are written: at once, or in a thread of their own while the next steps run.

In the second case weights and moments are copied at the step boundary, and the copy is written, hashed and
sealed beside the steps that follow. One is in flight at most. It is announced at the first step boundary
after it is whole on disk, and what went wrong with it is raised there.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from trainer.clock import Clock
from trainer.core.checkpoints import Checkpoint
from trainer.core.run import Run
from trainer.errors import TrainerError


class Saver:
    """Saves a run's checkpoints; use it as a context manager, so that none is left half written."""

    def __init__(
        self, run: Run, *, overlaps: bool, announce: Callable[[Checkpoint], None], clock: Clock
    ) -> None:
        self._run = run
        self._overlaps = overlaps
        self._announce = announce
        self._clock = clock
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Checkpoint] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the one in flight; what ended the run is raised before what went wrong with that."""
        with self._executor:
            if error is None:
                self.finish()
                return
            with suppress(TrainerError):
                self.finish()

    def save(self) -> None:
        """The run as it stands. The last checkpoint is written at once: no step is left to wait beside."""
        self.finish()
        write = None
        if self._overlaps and not self._run.is_done:
            write = self._run.snapshot(created_at=self._clock.now())
        if write is None:
            self.save_now()
        else:
            self._writing = self._executor.submit(write)

    def save_now(self) -> None:
        """The same, and wait until it is announced."""
        self.finish()
        self._announce(self._run.save(created_at=self._clock.now()))

    def hear(self) -> None:
        """Announce the one in flight if it is whole by now; raise what went wrong with it."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """The same, but wait for it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._run.saved = writing.result()
            self._announce(self._run.saved)
