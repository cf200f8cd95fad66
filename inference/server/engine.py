"""The served model and the threads that run it, seen from the event loop.

Generations run together in one thread; releases are loaded in another, beside the served one. A request
holds on to the release it began with, so that a swap touches nothing in flight.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from inference.errors import NoActiveRelease, Overloaded
from inference.model import LoadedModel
from inference.prompts import encode_prompt, encode_text
from inference.server.confidence import read_note, temperatures_of
from inference.server.config import ServerConfig
from inference.server.metrics import Metrics
from inference.server.releases import (
    current_release_id,
    load_release,
    release_directory,
    verify_release,
)
from inference.server.scheduler import Scheduler, StreamPiece, Work
from registry.calibrations import ConfidenceNote
from registry.errors import ManifestError
from registry.manifests import read_manifest
from registry.records import GenerationSettings
from registry.rows import ChatMessage
from registry.serving import ReleaseInfo, RunningReply, ServerHealth, ServerState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedRelease:
    """A loaded release."""

    release_id: str
    loaded: LoadedModel
    loaded_at: datetime
    confidence: ConfidenceNote


class Engine:
    """Holds the active release, swaps it, and answers with it."""

    def __init__(self, config: ServerConfig, *, clock: Callable[[], datetime], metrics: Metrics) -> None:
        self._config = config
        self._clock = clock
        self._started_at = clock()
        self._active: ServedRelease | None = None
        self._loading_id: str | None = None
        self._is_restoring = False
        self._problem = ""
        self._num_requests = self._num_errors = self._num_pending = 0
        self._metrics = metrics
        self._scheduler = Scheduler(max_running=config.max_running, max_tokens=config.max_batch_tokens)
        self._encoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._loading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")

    def restore(self) -> Future[None]:
        """Begin to load what `current` names. The future never fails: a broken one is told by `health`."""
        self._is_restoring = True
        return self._loading.submit(self._restore)

    def close(self) -> None:
        """End every generation at its next token and wait for the threads."""
        self._scheduler.close()
        for executor in (self._loading, self._encoding):
            executor.shutdown(wait=True, cancel_futures=True)

    @property
    def active_id(self) -> str | None:
        """Id of the release that a request would get."""
        active = self._active
        return None if active is None else active.release_id

    def active(self) -> ServedRelease:
        """The release to answer with; `NoActiveRelease` says why there is none."""
        if (active := self._active) is not None:
            return active
        reasons = {
            "loading": "the release is being loaded; try again shortly.",
            "error": f"the current one cannot be served: {self._problem}",
        }
        reason = reasons.get(self._status(), "deploy one, or POST /models/set_active.")
        raise NoActiveRelease(f"no release is active; {reason}")

    @property
    def num_waiting(self) -> int:
        """Requests that were taken on and are not generated for yet."""
        return max(0, self._num_pending - self._scheduler.num_running)

    def health(self) -> ServerHealth:
        """The server's state at this moment."""
        active = self._active
        return ServerHealth(
            status=self._status(),
            release_id=None if active is None else active.release_id,
            weights_sha256=None if active is None else active.loaded.weights_sha256,
            loaded_at=None if active is None else active.loaded_at,
            loading_release_id=self._loading_id,
            problem=self._problem,
            num_requests=self._num_requests,
            num_errors=self._num_errors,
            num_waiting=self.num_waiting,
            uptime_seconds=max(0.0, (self._clock() - self._started_at).total_seconds()),
        )

    async def activate(self, release_id: str) -> tuple[ServedRelease, str | None]:
        """Load a release beside the served one, probe it, swap. Returns it and the id of the one before.

        `ReleaseError` leaves the old one serving. Goes on to its end if the client does not wait for it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._loading, self._activate, release_id)

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
        if self.num_waiting >= self._config.max_waiting:
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
        self._num_requests += 1
        self._num_pending += 1
        self._scheduler.submit(work)
        try:
            async for piece in _until_the_last(pieces):
                yield piece
        except Exception:
            self._num_errors += 1
            raise
        finally:
            work.is_unwanted.set()
            self._num_pending -= 1
            self._metrics.count_reply(
                len(prompt), num_tokens=work.reply.num_tokens, first_token_seconds=work.first_token_seconds
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
            for work in self._scheduler.running
        ]

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the caches of keys and values hold."""
        return self._scheduler.num_cached_tokens

    async def register(self, release_id: str) -> ReleaseInfo:
        """Verify every file of a release that lies in the server's directory, without loading it.

        `ReleaseError` for one that is not there or not whole.
        """
        return await asyncio.get_running_loop().run_in_executor(self._loading, self._verified, release_id)

    def _verified(self, release_id: str) -> ReleaseInfo:
        manifest = verify_release(release_directory(self._config.releases_dir, release_id))
        return ReleaseInfo(
            release_id=release_id,
            weights_sha256=manifest.weights_sha256,
            is_active=release_id == self.active_id,
        )

    def _restore(self) -> None:
        try:
            release_id = current_release_id(self._config.releases_dir)
            if release_id is not None:
                self._activate(release_id)
        except Exception as error:
            self._problem = str(error)
            logger.exception("the current release cannot be restored")
        finally:
            self._is_restoring = False

    def _activate(self, release_id: str) -> tuple[ServedRelease, str | None]:
        before = self._active
        self._loading_id = release_id
        try:
            directory = release_directory(self._config.releases_dir, release_id)
            if before is not None and self._is_same(before, release_id=release_id):
                return before, before.release_id
            loaded = load_release(directory, device=self._config.device, num_threads=self._config.num_threads)
            note = read_note(directory)
            loaded = replace(loaded, confidence_temperatures=temperatures_of(note))
            served = ServedRelease(release_id, loaded, loaded_at=self._clock(), confidence=note)
        except Exception as error:
            self._problem = str(error)
            raise
        finally:
            self._loading_id = None
        self._active, self._problem = served, ""
        logger.info("serving release %s (weights %s)", release_id, loaded.weights_sha256[:12])
        gc.collect()
        return served, None if before is None else before.release_id

    def _is_same(self, served: ServedRelease, *, release_id: str) -> bool:
        if served.release_id != release_id:
            return False
        with suppress(ManifestError):  # a broken one is reported by loading it
            manifest = read_manifest(self._config.releases_dir / release_id)
            return manifest.weights_sha256 == served.loaded.weights_sha256
        return False

    def _status(self) -> ServerState:
        if self._active is not None:
            return "ok"
        if self._is_restoring or self._loading_id is not None:
            return "loading"
        return "error" if self._problem else "waiting"


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
