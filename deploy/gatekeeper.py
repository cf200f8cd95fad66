"""What the gate of an intelligence host does with each request: the only way another host commands it."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import JsonValue

from deploy.cache import Cache
from deploy.config import GateConfig
from deploy.door import ServingDoor
from deploy.errors import DeployError, NotDeployable, ServerFailed, TransferFailed
from deploy.proofs import Stamp, stamp
from deploy.receiving import Receiver
from deploy.runner import run_command
from deploy.target import FreeBytes, LocalTarget, check_release_id, free_bytes
from deploy.transfer import knows_fsync, takes_rsync
from deploy.wire import (
    Activate,
    Begin,
    Current,
    Envelope,
    Health,
    Hello,
    HelloAnswer,
    Probe,
    Prune,
    Request,
    Seal,
    SetActive,
    Verify,
)
from registry.files import write_atomically
from registry.manifests import Manifest, read_manifest

LOCK_NAME = ".lock"
FENCE_NAME = ".fence"
LOCK_SECONDS = 120.0
LOCK_PAUSE_SECONDS = 0.1
CHANGING = (Begin, Seal, Activate, Prune, SetActive)

Clock = Callable[[], datetime]
Sleep = Callable[[float], None]


class Gatekeeper:
    """Answers one request at a time of all sessions on this host: what changes something holds a file lock.

    The kernel frees the lock with its holder, however that ended.
    """

    def __init__(
        self,
        config: GateConfig,
        *,
        door: ServingDoor,
        host: str,
        version: str,
        clock: Clock,
        sleep: Sleep = time.sleep,
        measure_free: FreeBytes = free_bytes,
    ) -> None:
        self._config = config
        self._door = door
        self._host = host
        self._version = version
        self._clock = clock
        self._sleep = sleep
        self._releases = LocalTarget(config.releases_dir)
        self._proved: dict[str, Stamp] = {}
        self._receiver = Receiver(config, host=host, clock=clock, sleep=sleep, measure_free=measure_free)

    def answer(self, envelope: Envelope) -> JsonValue:
        """Do what is asked; `DeployError` where it cannot be, also for what the disk refuses."""
        try:
            if not isinstance(envelope.request, CHANGING):
                return self._do(envelope.request)
            with self._locked():
                if not _is_candidate(envelope.request):
                    self._check_fence(envelope.fence)
                return self._do(envelope.request)
        except OSError as error:
            raise TransferFailed(f"{self._host}: {error}") from error

    def _do(self, request: Request) -> JsonValue:
        """The verbs. Those of the server go to it on loopback, with its own key."""
        match request:
            case Hello():
                return self._hello().model_dump(mode="json")
            case Begin(parcel=parcel):
                slot = self._receiver.begin(parcel)
                slot = slot.changed(has_rsync=takes_rsync(), knows_fsync=knows_fsync(run_command))
                return slot.model_dump(mode="json")
            case Seal(parcel=parcel):
                path = self._receiver.seal(parcel)
                self._proved[path] = stamp(Path(path))
                return path
            case Verify(release_id=release_id):
                return self._verify(release_id).model_dump(mode="json")
            case Activate(release_id=release_id, is_return=is_return):
                self._releases.activate(release_id, is_return=is_return)
                return None
            case Current():
                return self._releases.current()
            case Prune():
                return list(self._prune(request))
            case _:
                return self._of_the_server(request)

    def _verify(self, release_id: str) -> Manifest:
        """Not read again where this very session read it and no file was touched since."""
        check_release_id(release_id)
        directory = self._config.releases_dir / release_id
        if directory.is_dir() and self._proved.get(str(directory)) == stamp(directory):
            return read_manifest(directory)
        return self._releases.verify(release_id)

    def _of_the_server(self, request: Request) -> JsonValue:
        match request:
            case Health():
                return self._door.health().model_dump(mode="json")
            case SetActive(release_id=release_id):
                return self._door.set_active(release_id).model_dump(mode="json")
            case Probe(release_id=release_id, prompt=prompt):
                return self._door.probe(prompt, release_id=release_id)
            case _:
                raise DeployError(f"{self._host} does not know {request.verb}.")

    def _prune(self, request: Prune) -> list[str]:
        """Never what the server serves or loads; where it cannot be asked, nothing goes."""
        try:
            health = self._door.health()
        except ServerFailed:
            return []
        serving = [name for name in (health.release_id, health.loading_release_id) if name]
        return self._releases.prune(keep=request.keep, protect=[*request.protect, *serving])

    def _hello(self) -> HelloAnswer:
        config = self._config
        config.releases_dir.mkdir(parents=True, exist_ok=True)
        releases = [path for path in config.releases_dir.iterdir() if path.is_dir() and not path.is_symlink()]
        return HelloAnswer(
            host=self._host,
            version=self._version,
            time=self._clock(),
            has_rsync=takes_rsync(),
            knows_fsync=knows_fsync(run_command),
            releases_dir=str(config.releases_dir),
            incoming_dir=str(config.incoming_dir),
            free_bytes=free_bytes(config.releases_dir),
            num_releases=len(releases),
            num_cached=len(Cache(config.cache_dir, max_bytes=config.cache_bytes).names()),
            current=self._releases.current(),
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._config.incoming_dir.parent.mkdir(parents=True, exist_ok=True)
        with (self._config.incoming_dir.parent / LOCK_NAME).open("w") as stream:
            self._lock(stream.fileno())
            yield

    def _lock(self, descriptor: int) -> None:
        """Not for ever: whoever waits is told who has it."""
        for _ in range(int(LOCK_SECONDS / LOCK_PAUSE_SECONDS)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._sleep(LOCK_PAUSE_SECONDS)
            else:
                return
        raise DeployError(f"Another deployment holds the lock on {self._host}.", remedy="Try again later.")

    def _check_fence(self, fence: int) -> None:
        path = self._config.incoming_dir.parent / FENCE_NAME
        highest = int(path.read_text() or 0) if path.exists() else 0
        if fence < highest:
            raise NotDeployable(
                f"Another deployer took over on {self._host} (token {highest}; this one's is {fence}).",
                remedy=f"If the registry was made anew, remove {path} there.",
            )
        if fence > highest:
            write_atomically(path, content=str(fence).encode())


def _is_candidate(request: Request) -> bool:
    """Named by its content: whoever sends it sends the same."""
    return isinstance(request, Begin | Seal) and request.parcel.kind != "release"
