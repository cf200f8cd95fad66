"""Fakes of this room's seams, in memory. They pass the same contract tests as the real ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from deploy.errors import NotDeployable, ServerDown, ServerFailed, TransferFailed
from deploy.gate import answer_line
from deploy.gatekeeper import Gatekeeper
from deploy.target import (
    NO_FILES,
    ExtraFiles,
    check_release_id,
    check_step,
    entries_of,
    model_files,
    prunable,
)
from deploy.transfer import check_names
from deploy.wire import Beat, Slot
from registry.errors import ManifestError
from registry.manifests import Manifest, verify, weights_sha256
from registry.serving import ReleaseTraffic, ServerHealth, ServerState, SetActiveAnswer


class CopyingCarrier:
    """Brings files by copying, as if the other host's disk were here. `spoils` arrive changed, once each."""

    def __init__(self) -> None:
        self.num_carried = 0
        self.spoils: list[str] = []

    def carry(self, source: Path, *, names: Iterable[str], slot: Slot, use_base: bool) -> None:
        """Each file, with its times, as rsync would; a base changes nothing."""
        del use_base
        self.num_carried += 1
        into = Path(slot.incoming_dir) / slot.directory
        for name in check_names(names):
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                shutil.copy2(source / name, target)
            except OSError as error:
                raise TransferFailed(f"{name}: {error}") from error
            if name in self.spoils:
                self.spoils.remove(name)
                target.write_bytes(b"spoiled")


class GateLine:
    """A line to a gatekeeper of this process. `is_cut` loses the answer to what was done."""

    def __init__(self, gatekeeper: Gatekeeper) -> None:
        self.is_cut = False
        self._gatekeeper = gatekeeper
        self._answers = b""

    def sendall(self, data: bytes) -> None:
        """Have it answered, after a beat."""
        self._answers += Beat().model_dump_json().encode() + b"\n"
        self._answers += answer_line(self._gatekeeper, data.decode()).model_dump_json().encode() + b"\n"

    def recv(self, nbytes: int) -> bytes:
        """A part of what was answered."""
        if self.is_cut:
            self.is_cut, self._answers = False, b""
            raise TimeoutError("timed out")
        block, self._answers = self._answers[: min(nbytes, 7)], self._answers[min(nbytes, 7) :]
        return block

    def close(self) -> None:
        """Forget the rest."""
        self._answers = b""


class FakeTarget:
    """Releases in a dictionary. `damaged` names releases whose files do not verify."""

    def __init__(self) -> None:
        self.releases: dict[str, Manifest] = {}
        self.damaged: set[str] = set()
        self._current: str | None = None

    def push(self, source: Path, *, release_id: str, extra_files: ExtraFiles = NO_FILES) -> str:
        """Keep the manifest, without training state."""
        check_release_id(release_id)
        try:
            manifest = verify(source, with_state=False)
            is_same = weights_sha256(manifest.files) == manifest.weights_sha256
        except ManifestError as error:
            raise TransferFailed(str(error)) from error
        if not is_same:
            raise TransferFailed(f"{source} is not what its manifest says.")
        files = model_files(manifest) | entries_of(extra_files)
        kept = self.releases.setdefault(release_id, manifest.changed(files=files))
        if kept.weights_sha256 != manifest.weights_sha256:
            raise TransferFailed(f"Release {release_id} exists with other weights.")
        self.verify(release_id)
        return f"memory/{release_id}"

    def verify(self, release_id: str) -> Manifest:
        """Fails for what is damaged or absent."""
        check_release_id(release_id)
        if release_id in self.damaged or release_id not in self.releases:
            raise TransferFailed(f"Release {release_id} is damaged.")
        return self.releases[release_id]

    def activate(self, release_id: str, *, is_return: bool = False) -> None:
        """Remember."""
        check_release_id(release_id)
        if release_id not in self.releases:
            raise NotDeployable(f"There is no release {release_id}.")
        check_step(release_id, current=self._current, is_return=is_return)
        self._current = release_id

    def current(self) -> str | None:
        """What was remembered."""
        return self._current

    def prune(self, *, keep: int, protect: Iterable[str]) -> list[str]:
        """Forget the oldest."""
        doomed = prunable(self.releases, keep=keep, protect=[*protect, self._current])
        for name in doomed:
            del self.releases[name]
        return doomed


class FakeDoor:
    """A server that serves what lies in a fake target.

    `refuses` are releases it cannot load, `mute` those it answers no probe with, `slow` those it loads only
    after the deployer lost patience, `ousts` those for which the served one makes way, which fail, and after
    which it does not come back.
    """

    def __init__(self, target: FakeTarget, *, now: datetime, release_id: str | None = None) -> None:
        self.release_id = release_id
        self.loading_release_id: str | None = None
        self.refuses: set[str] = set()
        self.mute: set[str] = set()
        self.slow: set[str] = set()
        self.ousts: set[str] = set()
        self.is_down = False
        self.is_cut_off = False
        self.is_starting = False
        self.problem = ""
        self.uptime_seconds = 1e6
        self.traffic: ReleaseTraffic | None = None
        self._target = target
        self._now = now

    def health(self) -> ServerHealth:
        """What it serves."""
        self._require_up()
        return ServerHealth(
            status=self._status(),
            problem=self.problem,
            release_id=self.release_id,
            weights_sha256=None if self.release_id is None else self._weights(self.release_id),
            loaded_at=None if self.release_id is None else self._now,
            loading_release_id=self.loading_release_id,
            traffic=self.traffic,
            num_requests=0,
            num_errors=0,
            num_waiting=0,
            uptime_seconds=self.uptime_seconds,
        )

    def set_active(self, release_id: str) -> SetActiveAnswer:
        """Swap; what is being loaded comes first, as in the server."""
        self._require_up()
        if release_id in self.refuses or release_id not in self._target.releases:
            raise ServerFailed(f"{release_id} cannot be loaded.")
        if release_id in self.slow:
            self.loading_release_id = release_id
            raise ServerFailed(f"{release_id} was not loaded in time.")
        self.finish_loading()
        if release_id in self.ousts:
            self.release_id = None
            raise ServerFailed(f"{release_id} cannot be loaded. The former one could not be loaded again.")
        before, self.release_id = self.release_id, release_id
        return SetActiveAnswer(
            release_id=release_id,
            weights_sha256=self._weights(release_id),
            previous_release_id=before,
            loaded_at=self._now,
        )

    def probe(self, prompt: str, *, release_id: str) -> str:
        """Echo."""
        self._require_up()
        if self.release_id in self.mute or self.release_id != release_id:
            raise ServerFailed(f"The probe of {release_id} failed.")
        return prompt

    def finish_loading(self) -> None:
        """Let a slow load end."""
        if self.loading_release_id is not None:
            self.release_id, self.loading_release_id = self.loading_release_id, None

    def _status(self) -> ServerState:
        if self.release_id is not None:
            return "ok"
        if self.is_starting:
            return "loading"
        return "error" if self.problem else "waiting"

    def _weights(self, release_id: str) -> str:
        return self._target.releases[release_id].weights_sha256

    def _require_up(self) -> None:
        if self.is_down:
            raise ServerDown("The inference server cannot be reached.")
        if self.is_cut_off:
            raise ServerFailed("The inference server's host cannot be reached.")
