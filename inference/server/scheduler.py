"""One thread generates for all requests at once, each with the model it began with.

A request joins between two steps as soon as there is room, first come, first served. Nothing of a request
touches another: its errors are its own, and one that nobody waits for any more is dropped at the next step.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue

from inference.continuous import Admission, NextToken, RunningBatch
from inference.errors import ServerError
from inference.model import LoadedModel
from inference.server.work import Work


class Scheduler:
    """Runs the batches. `max_tokens` bounds the cache of keys and values, in tokens, padding included."""

    def __init__(self, *, max_running: int, max_tokens: int) -> None:
        self._max_running = max_running
        self._max_tokens = max_tokens
        self._arrivals: SimpleQueue[Work | None] = SimpleQueue()
        self._waiting: deque[Work] = deque()
        self._running: dict[int, Work] = {}
        self._batches: dict[int, RunningBatch] = {}
        self._keys = itertools.count()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Requests that are being generated for."""
        return len(self._running)

    @property
    def running(self) -> list[Work]:
        """The requests that are being generated for."""
        return list(self._running.values())

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the caches hold, padding included."""
        return sum(batch.num_cached_tokens for batch in list(self._batches.values()))

    def submit(self, work: Work) -> None:
        """Take on a request."""
        self._arrivals.put(work)

    def close(self) -> None:
        """End every generation at its next token; those who wait get a `ServerError`."""
        self._is_closing.set()
        self._arrivals.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closing.is_set():
            self._receive()
            self._forget_unwanted()
            self._admit()
            self._advance_all()
        self._receive()
        for work in (*self._waiting, *self._running.values()):
            work.put(ServerError("The server is shutting down."))

    def _receive(self) -> None:
        """Take in what has come; wait for something only where there is nothing to do."""
        is_idle = not self._waiting and not self._running and not self._is_closing.is_set()
        try:
            while True:
                work = self._arrivals.get(block=is_idle)
                is_idle = False
                if work is not None:
                    self._waiting.append(work)
        except Empty:
            return

    def _forget_unwanted(self) -> None:
        self._waiting = deque(work for work in self._waiting if not work.is_unwanted.is_set())
        self._end(key for key, work in list(self._running.items()) if work.is_unwanted.is_set())

    def _admit(self) -> None:
        """First come, first served: a long one at the head waits until there is room and is not passed."""
        newcomers: dict[int, list[int]] = {}
        while self._waiting and self._has_room(self._waiting[0]):
            work = self._waiting.popleft()
            key = next(self._keys)
            self._running[key] = work
            newcomers.setdefault(id(work.loaded), []).append(key)
        for model, keys in newcomers.items():
            self._begin(model, keys=keys)

    def _has_room(self, newcomer: Work) -> bool:
        """Whether all may grow to their ends. One that is alone is always let in."""
        if not self._running:
            return True
        sizes: dict[int, list[int]] = {}
        for work in (*self._running.values(), newcomer):
            sizes.setdefault(id(work.loaded), []).append(work.num_tokens)
        num_tokens = sum(len(lengths) * max(lengths) for lengths in sizes.values())
        return len(self._running) < self._max_running and num_tokens <= self._max_tokens

    def _begin(self, model: int, *, keys: list[int]) -> None:
        loaded = self._running[keys[0]].loaded
        assert isinstance(loaded, LoadedModel)  # noqa: S101 - this scheduler runs no other
        batch = self._batches.setdefault(model, RunningBatch(loaded))
        rows = [
            Admission(key, prompt=work.prompt, settings=work.settings, num_likeliest=work.num_likeliest)
            for key, work in ((key, self._running[key]) for key in keys)
        ]
        try:
            self._deliver(batch.admit(rows))
        except Exception as error:  # noqa: BLE001 - it is raised again where the request is answered
            self._fail(keys, error=error)

    def _advance_all(self) -> None:
        """One step of each batch. An empty one is the last to hold a model that is no longer served."""
        for batch in list(self._batches.values()):
            if batch.keys:
                self._advance(batch)
        self._batches = {model: batch for model, batch in self._batches.items() if batch.keys}

    def _advance(self, batch: RunningBatch) -> None:
        try:
            self._deliver(batch.step())
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(batch.keys, error=error)

    def _deliver(self, tokens: Iterable[NextToken]) -> None:
        ended = [token.key for token in tokens if self._running[token.key].take(token)]
        self._end(ended)

    def _fail(self, keys: Iterable[int], *, error: Exception) -> None:
        failed = list(keys)
        for key in failed:
            self._running[key].put(error)
        self._end(failed)

    def _end(self, keys: Iterable[int]) -> None:
        for key in keys:
            batch = self._batches.get(id(self._running.pop(key).loaded))
            if batch is not None:
                batch.drop({key})
