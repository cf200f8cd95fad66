"""Fakes of this room's seams, in memory. They pass the same contract tests as the real ones."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from deploy.errors import NotDeployable, ServerFailed, TransferFailed
from registry.errors import ManifestError
from registry.manifests import Manifest, read_manifest
from registry.serving import ServerHealth, SetActiveAnswer


class FakeTarget:
    """Releases in a dictionary. `damaged` names releases whose files do not verify."""

    def __init__(self) -> None:
        self.releases: dict[str, Manifest] = {}
        self.damaged: set[str] = set()
        self._current: str | None = None

    def push(self, source: Path, *, release_id: str) -> str:
        """Keep the manifest, without training state."""
        try:
            manifest = read_manifest(source)
        except ManifestError as error:
            raise TransferFailed(str(error)) from error
        files = {name: entry for name, entry in manifest.files.items() if not entry.is_state}
        self.releases.setdefault(release_id, manifest.changed(files=files))
        return f"memory/{release_id}"

    def verify(self, release_id: str) -> Manifest:
        """Fails for what is damaged or absent."""
        if release_id in self.damaged or release_id not in self.releases:
            raise TransferFailed(f"Release {release_id} is damaged.")
        return self.releases[release_id]

    def activate(self, release_id: str) -> None:
        """Remember."""
        if release_id not in self.releases:
            raise NotDeployable(f"There is no release {release_id}.")
        self._current = release_id

    def current(self) -> str | None:
        """What was remembered."""
        return self._current

    def prune(self, *, keep: int, protect: Iterable[str]) -> list[str]:
        """Forget the oldest."""
        kept = {*protect, self._current}
        names = sorted(self.releases)
        doomed = [name for name in names[: max(0, len(names) - keep)] if name not in kept]
        for name in doomed:
            del self.releases[name]
        return doomed


class FakeDoor:
    """A server that serves by name. `refuses` are releases it cannot load, `mute` fails every probe."""

    def __init__(self, *, now: datetime, release_id: str | None = None) -> None:
        self.release_id = release_id
        self.refuses: set[str] = set()
        self.mute = False
        self.is_down = False
        self._now = now

    def health(self) -> ServerHealth:
        """What it serves."""
        self._require_up()
        return ServerHealth(
            status="ok" if self.release_id else "waiting",
            release_id=self.release_id,
            weights_sha256=None,
            loaded_at=None,
            num_requests=0,
            num_errors=0,
            num_waiting=0,
            uptime_seconds=1.0,
        )

    def set_active(self, release_id: str) -> SetActiveAnswer:
        """Swap."""
        self._require_up()
        if release_id in self.refuses:
            raise ServerFailed(f"{release_id} cannot be loaded.")
        before, self.release_id = self.release_id, release_id
        return SetActiveAnswer(
            release_id=release_id, weights_sha256="0" * 64, previous_release_id=before, loaded_at=self._now
        )

    def probe(self, prompt: str, *, release_id: str) -> str:
        """Echo."""
        self._require_up()
        if self.mute or self.release_id != release_id:
            raise ServerFailed(f"The probe of {release_id} failed.")
        return prompt

    def _require_up(self) -> None:
        if self.is_down:
            raise ServerFailed("The inference server cannot be reached.")
