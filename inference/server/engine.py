"""The served model as the doors see it, on the event loop: who answers, and a reply as it comes.

A request holds on to the release it began with, so that a swap touches nothing in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime

from inference.errors import (
    EngineDown,
    ModelError,
    NoActiveRelease,
    OutOfMemory,
    Overloaded,
    PromptTooLong,
    RequestRefused,
)
from inference.prompts import encode_prompt, encode_text
from inference.server.backend import Backend
from inference.server.config import ServerConfig
from inference.server.metrics import Metrics
from inference.server.swap import ServedRelease, Smoke, Swap
from inference.server.work import StreamPiece, Work
from registry.records import GenerationSettings
from registry.rows import ChatMessage
from registry.serving import ReleaseInfo, ReleaseTraffic, RunningReply, ServerHealth

HOLD_PAUSE_SECONDS = 0.02


class Engine:
    """Answers with the active release."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        backend: Backend,
        smoke: Smoke,
        clock: Callable[[], datetime],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._clock = clock
        self._started_at = clock()
        self._num_requests = self._num_errors = self._num_pending = self._num_held = 0
        self._metrics = metrics
        self._backend = backend
        self._swap = Swap(config, backend=backend, clock=clock, smoke=smoke)
        self._encoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    def restore(self) -> Future[None]:
        """Begin to load what `current` names. The future never fails: a broken one is told by `health`."""
        return self._swap.restore()

    def close(self) -> None:
        """End every generation at its next token and wait for the threads."""
        self._backend.close()
        self._swap.close()
        self._encoding.shutdown(wait=True, cancel_futures=True)

    @property
    def active_id(self) -> str | None:
        """Id of the release that a request would get."""
        active = self._swap.active
        return None if active is None else active.release_id

    def active(self) -> ServedRelease:
        """The release to answer with; `NoActiveRelease` says why there is none."""
        if (active := self._swap.active) is not None:
            return active
        reasons = {
            "loading": "the release is being loaded; try again shortly.",
            "error": f"the current one cannot be served: {self._swap.problem}",
        }
        reason = reasons.get(self._swap.status, "deploy one, or POST /models/set_active.")
        raise NoActiveRelease(f"no release is active; {reason}")

    async def release_for(self, name: str | None = None) -> ServedRelease:
        """The release that answers a request which names a model: the active one, or the named one on trial.

        While a release is being put in place of another the request is held, `max_pause_seconds` at most.
        """
        staged = self._swap.staged
        if staged is not None and staged.release_id == name:
            return staged
        if self._swap.active is None and self._swap.is_paused:
            await self._held()
        return self.active()

    async def _held(self) -> None:
        if self._num_held >= self._config.max_waiting:
            raise Overloaded(f"{self._num_held} requests wait already.", remedy="Try again shortly.")
        self._num_held += 1
        deadline = time.monotonic() + self._config.max_pause_seconds
        try:
            while self._swap.active is None and self._swap.is_paused and time.monotonic() < deadline:
                await asyncio.sleep(HOLD_PAUSE_SECONDS)
        finally:
            self._num_held -= 1

    @property
    def num_waiting(self) -> int:
        """Requests that were taken on and are not generated for yet."""
        return max(0, self._num_pending - len(self._backend.activity().running)) + self._num_held

    def health(self) -> ServerHealth:
        """The server's state at this moment."""
        swap, active = self._swap, self._swap.active
        return ServerHealth(
            status=swap.status,
            release_id=None if active is None else active.release_id,
            weights_sha256=None if active is None else active.loaded.weights_sha256,
            loaded_at=None if active is None else active.loaded_at,
            loading_release_id=swap.loading_id,
            step=swap.step,
            problem=swap.problem,
            traffic=None if active is None else _traffic(active),
            num_requests=self._num_requests,
            num_errors=self._num_errors,
            num_waiting=self.num_waiting,
            uptime_seconds=max(0.0, (self._clock() - self._started_at).total_seconds()),
        )

    async def activate(self, release_id: str) -> tuple[ServedRelease, str | None]:
        """Serve another release; it, and the id of the one before. `ReleaseError` leaves the old one."""
        return await self._swap.activate(release_id)

    async def register(self, release_id: str) -> ReleaseInfo:
        """Verify every file of a release that lies in the server's directory, without loading it."""
        return await self._swap.register(release_id)

    async def encode(self, release: ServedRelease, messages: tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a conversation, computed off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoding, encode_prompt, release.loaded, messages)

    async def encode_text(self, release: ServedRelease, text: str) -> tuple[int, ...]:
        """Token ids of a text as it is, computed off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoding, encode_text, release.loaded, text)

    async def reply(
        self,
        release: ServedRelease,
        prompt: tuple[int, ...],
        *,
        settings: GenerationSettings,
        is_streamed: bool = False,
        num_likeliest: int = 0,
    ) -> AsyncGenerator[StreamPiece]:
        """The pieces of a reply, or the last alone where it is not streamed. Closing the iterator ends it.

        `Overloaded` if too many wait. A slow reader holds up nobody: its pieces wait in memory.
        """
        # What is on trial answers only its trial: that is not turned away, and counts as nobody's request.
        is_trial = release is self._swap.staged
        if not is_trial and self.num_waiting >= self._config.max_waiting:
            raise Overloaded(f"{self.num_waiting} requests wait already.", remedy="Try again shortly.")
        pieces: asyncio.Queue[StreamPiece | Exception] = asyncio.Queue()
        work = Work(
            release.loaded,
            release_id=release.release_id,
            prompt=prompt,
            settings=settings,
            put=_putter(pieces),
            is_streamed=is_streamed,
            num_likeliest=num_likeliest,
        )
        self._num_requests += not is_trial
        self._num_pending += 1
        self._backend.submit(work)
        try:
            async for piece in _until_the_last(pieces):
                if piece.result is not None:
                    release.tally.num_requests += not is_trial
                yield piece
        except Exception as error:
            self._count_failure(release, error=error)
            raise
        finally:
            self._let_go(work)

    def _let_go(self, work: Work) -> None:
        work.is_unwanted.set()
        self._num_pending -= 1
        self._metrics.count_reply(
            len(work.prompt), num_tokens=work.reply.num_tokens, first_token_seconds=work.first_token_seconds
        )

    def running(self) -> list[RunningReply]:
        """The requests that are generated for at this moment."""
        return [
            RunningReply(
                release_id=work.release_id,
                num_prompt_tokens=len(work.prompt),
                num_tokens=work.reply.num_tokens,
                age_seconds=time.monotonic() - work.submitted_at_seconds,
                is_streamed=work.is_streamed,
            )
            for work in self._backend.activity().running
        ]

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the caches of keys and values hold."""
        return self._backend.activity().num_cached_tokens

    def _count_failure(self, release: ServedRelease, *, error: Exception) -> None:
        """A release answers for what its model did; not for its client, nor for an engine that is down."""
        if release is self._swap.staged:
            return
        self._num_errors += 1
        if isinstance(error, EngineDown):
            self._swap.revive(release)
        elif _is_of_the_model(error):
            release.tally.num_requests += 1
            release.tally.num_errors += 1


def _is_of_the_model(error: Exception) -> bool:
    if isinstance(error, RequestRefused | PromptTooLong | Overloaded):
        return False
    return isinstance(error, OutOfMemory) or not isinstance(error, ModelError)


def _traffic(release: ServedRelease) -> ReleaseTraffic:
    return ReleaseTraffic(
        release_id=release.release_id,
        since=release.loaded_at,
        num_requests=release.tally.num_requests,
        num_errors=release.tally.num_errors,
    )


def _putter(pieces: asyncio.Queue[StreamPiece | Exception]) -> Callable[[StreamPiece | Exception], None]:
    """Fills a queue of this event loop from another thread."""
    loop = asyncio.get_running_loop()

    def put(piece: StreamPiece | Exception) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody is left to read
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    return put


async def _until_the_last(
    pieces: asyncio.Queue[StreamPiece | Exception],
) -> AsyncGenerator[StreamPiece]:
    while True:
        piece = await pieces.get()
        if isinstance(piece, Exception):
            raise piece
        yield piece
        if piece.result is not None:
            return
