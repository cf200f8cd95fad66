"""Which release answers, and how another takes its place.

Beside: the new one is loaded and tried while the old one answers, then one assignment swaps them. In its
place, where memory is short: new requests are held, those under way end, the old model is freed, the new
one loaded and tried; if that fails the old one is loaded again. Either way a request ends on the model that
it began with.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from inference.errors import OutOfMemory, ReleaseError
from inference.model import TextModel
from inference.server.backend import Backend
from inference.server.confidence import read_note, temperatures_of
from inference.server.config import ServerConfig
from inference.server.releases import current_release_id, release_directory, verify_release
from registry.calibrations import ConfidenceNote
from registry.errors import ManifestError
from registry.manifests import read_manifest
from registry.serving import ReleaseInfo, ServerState, SwapStep

logger = logging.getLogger(__name__)
DRAIN_PAUSE_SECONDS = 0.05


@dataclass
class Tally:
    """What became of a release's requests since it was loaded. Written by the event loop alone."""

    num_requests: int = 0
    num_errors: int = 0


@dataclass(frozen=True)
class ServedRelease:
    """A loaded release."""

    release_id: str
    loaded: TextModel
    loaded_at: datetime
    confidence: ConfidenceNote
    tally: Tally = field(default_factory=Tally, compare=False)


# Asks a loaded release before it answers anybody else; `ReleaseError` says what was wrong with its answer.
Smoke = Callable[[ServedRelease], None]


class Swap:
    """Loads in a thread of its own, one release after another; its properties are read from any thread."""

    def __init__(
        self, config: ServerConfig, *, backend: Backend, clock: Callable[[], datetime], smoke: Smoke
    ) -> None:
        self._config = config
        self._backend = backend
        self._clock = clock
        self._smoke = smoke
        self._is_restoring = False
        self._loading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
        self.active: ServedRelease | None = None
        self.staged: ServedRelease | None = None
        self.is_paused = False
        self.loading_id: str | None = None
        self.step: SwapStep = ""
        self.problem = ""

    @property
    def status(self) -> ServerState:
        """As `GET /health` tells it."""
        active = self.active
        if active is not None:
            return "ok" if active.loaded.is_alive else "error"
        if self._is_restoring or self.loading_id is not None:
            return "loading"
        return "error" if self.problem else "waiting"

    def restore(self) -> Future[None]:
        """Begin to load what `current` names. The future never fails: a broken one is told by `problem`."""
        self._is_restoring = True
        return self._loading.submit(self._restore)

    async def activate(self, release_id: str) -> tuple[ServedRelease, str | None]:
        """Serve a release; it, and the id of the one before. `ReleaseError` leaves the old one serving.

        Goes on to its end if the client does not wait for it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._loading, self._activate, release_id)

    async def register(self, release_id: str) -> ReleaseInfo:
        """Verify every file of a release without loading it; `ReleaseError` for one that is not whole."""
        return await asyncio.get_running_loop().run_in_executor(self._loading, self._registered, release_id)

    def revive(self, served: ServedRelease) -> None:
        """Load the active release again where the process that ran it is gone."""
        if served is self.active and not served.loaded.is_alive:
            self.active, self.is_paused, self._is_restoring = None, True, True
            self._loading.submit(self._revive, served.release_id)

    def close(self) -> None:
        """Wait for the thread, and let go of the model."""
        self._loading.shutdown(wait=True, cancel_futures=True)
        self.active = None

    def _registered(self, release_id: str) -> ReleaseInfo:
        manifest = verify_release(release_directory(self._config.releases_dir, release_id))
        active = self.active
        return ReleaseInfo(
            release_id=release_id,
            weights_sha256=manifest.weights_sha256,
            is_active=active is not None and active.release_id == release_id,
        )

    def _restore(self) -> None:
        try:
            release_id = current_release_id(self._config.releases_dir)
            if release_id is not None:
                self._serve_untried(release_id)
        except Exception as error:
            self.problem = str(error)
            logger.exception("the current release cannot be restored")
        finally:
            self._is_restoring = False

    def _revive(self, release_id: str) -> None:
        logger.error("what ran %s is gone; it is loaded again", release_id)
        try:
            self._serve_untried(release_id)
        except Exception as error:
            self.problem = str(error)
            logger.exception("%s cannot be loaded again", release_id)
        finally:
            self._is_restoring = self.is_paused = False

    def _serve_untried(self, release_id: str) -> None:
        """What served before needs no trial: the same bytes are the same model."""
        self.loading_id = release_id
        try:
            served = self._loaded(release_directory(self._config.releases_dir, release_id))
        finally:
            self.loading_id, self.step = None, ""
        self.active, self.problem = served, ""

    def _activate(self, release_id: str) -> tuple[ServedRelease, str | None]:
        before = self.active
        before_id = None if before is None else before.release_id
        if before is not None and self._is_same(before, release_id=release_id):
            return before, before_id
        del before  # or its memory could not be freed
        self.loading_id = release_id
        try:
            served = self._brought_up(release_directory(self._config.releases_dir, release_id))
        except Exception as error:
            self.problem = str(error)
            raise
        finally:
            self.loading_id, self.step, self.staged = None, "", None
            self.is_paused = False
        self.problem = ""
        logger.info("serving release %s (weights %s)", release_id, served.loaded.weights_sha256[:12])
        gc.collect()
        return served, before_id

    def _brought_up(self, directory: Path) -> ServedRelease:
        """Load, try, and make it the active one: beside the old where there is room, else in its place."""
        how = self._config.swap
        if (
            self.active is None
            or how == "beside"
            or (how == "auto" and self._backend.has_room_for(directory))
        ):
            try:
                self.active = self._tried(directory)
                return self.active
            except ReleaseError as error:
                if self.active is None or how != "auto" or not isinstance(error.__cause__, OutOfMemory):
                    raise
                logger.warning("%s did not fit beside the served release", directory.name)
        return self._brought_up_instead(directory)

    def _brought_up_instead(self, directory: Path) -> ServedRelease:
        self.step = "verifying"
        verify_release(directory)  # what is broken on disk never costs a pause
        former_id = self._make_way()
        try:
            self.active = self._tried(directory)
        except Exception as error:  # noqa: BLE001 - told below
            # A traceback holds on to what failed, and so to its memory.
            problem = str(error)
        else:
            return self.active
        self._return_to(former_id, problem=problem)
        raise ReleaseError(f"{problem} {former_id} answers again.")

    def _make_way(self) -> str:
        """Hold new requests and free the active release once nobody uses it; its id.

        `ReleaseError`, and all is as before, where the requests under way take too long.
        """
        active = self.active
        if active is None:
            raise ReleaseError("There is no release to take the place of.")
        self.step = "draining"
        logger.info("%s makes way: memory is too short for two releases", active.release_id)
        held, rest = weakref.ref(active.loaded), _Rest(active)
        self.active, self.is_paused = None, True
        del active
        deadline = time.monotonic() + self._config.max_pause_seconds
        while time.monotonic() < deadline:
            if self._is_freed(held):
                return rest.release_id
            time.sleep(DRAIN_PAUSE_SECONDS)
        if (loaded := held()) is None:
            return rest.release_id
        self.active, self.is_paused = rest.with_model(loaded), False
        raise ReleaseError(
            f"The requests on {rest.release_id} did not end in {self._config.max_pause_seconds:g} s.",
            remedy="It stays. Try again when less is asked, or raise max_pause_seconds.",
        )

    def _is_freed(self, held: weakref.ref[TextModel]) -> bool:
        """Once no request holds the model; what is left then is rings of references."""
        if held() is None:
            gc.collect()
            return True
        return False

    def _return_to(self, release_id: str, *, problem: str) -> None:
        self.step, self.staged = "returning", None
        gc.collect()
        logger.error("%s; %s is loaded again", problem, release_id)
        try:
            self.active = self._loaded(self._config.releases_dir / release_id)
        except Exception as error:
            raise ReleaseError(f"{problem} {release_id} could not be loaded again: {error}") from error

    def _tried(self, directory: Path) -> ServedRelease:
        """Loaded, and found fit by its own answers; `staged` meanwhile, for who asks for it by its id."""
        served = self._loaded(directory)
        self.step, self.staged = "probing", served
        try:
            self._smoke(served)
        finally:
            self.staged = None
        return served

    def _loaded(self, directory: Path) -> ServedRelease:
        self.step = "loading"
        loaded = self._backend.load(directory)
        note = read_note(directory)
        loaded = replace(loaded, confidence_temperatures=temperatures_of(note))
        return ServedRelease(directory.name, loaded, loaded_at=self._clock(), confidence=note)

    def _is_same(self, served: ServedRelease, *, release_id: str) -> bool:
        if served.release_id != release_id or not served.loaded.is_alive:
            return False
        with suppress(ManifestError):  # a broken one is reported by loading it
            manifest = read_manifest(self._config.releases_dir / release_id)
            return manifest.weights_sha256 == served.loaded.weights_sha256
        return False


class _Rest:
    """A served release without its model, to be put together again."""

    def __init__(self, served: ServedRelease) -> None:
        self.release_id = served.release_id
        self._loaded_at = served.loaded_at
        self._confidence = served.confidence
        self._tally = served.tally

    def with_model(self, loaded: TextModel) -> ServedRelease:
        """The release as it was."""
        return ServedRelease(
            self.release_id, loaded, loaded_at=self._loaded_at, confidence=self._confidence, tally=self._tally
        )
