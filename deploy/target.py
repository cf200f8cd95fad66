"""Where releases lie: directories of read-only files with a manifest. `current` points at one of them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from deploy.errors import NotDeployable, TransferFailed
from registry.errors import ManifestError
from registry.files import sync_directory
from registry.manifests import FileEntry, Manifest, read_manifest, verify, write_manifest
from registry.serving import CURRENT_LINK, RELEASE_ID_PATTERN

PARTIAL_PREFIX = ".partial-"
READ_ONLY = 0o444
FREE_SPACE_FACTOR = 1.1

FreeBytes = Callable[[Path], int]


class ReleaseTarget(Protocol):
    """A place that keeps releases: a directory here, or a host behind ssh.

    These five, because each must be atomic where the files lie: bring a release whole, prove it, make it
    current, say which is current, and remove the old ones.
    """

    def push(self, source: Path, *, release_id: str) -> str:
        """Bring the model files of a checkpoint; the release's path. Doing it again completes it."""

    def verify(self, release_id: str) -> Manifest:
        """Check every sha256 where the files lie; `TransferFailed` names the first that differs."""

    def activate(self, release_id: str) -> None:
        """Point `current` at a release, atomically and durably."""

    def current(self) -> str | None:
        """The release that `current` points at."""

    def prune(self, *, keep: int, protect: Iterable[str]) -> list[str]:
        """Remove all but the newest `keep` releases, never a protected one or the current; what went."""


def free_bytes(directory: Path) -> int:
    """Free space where a directory lies."""
    return shutil.disk_usage(directory).free


class LocalTarget:
    """Releases in a directory of this machine."""

    def __init__(self, releases_dir: Path, *, measure_free: FreeBytes = free_bytes) -> None:
        self._root = releases_dir
        self._measure_free = measure_free

    def push(self, source: Path, *, release_id: str) -> str:
        """Copy beside, verify the copy, rename: a release directory is whole or absent."""
        final = self._path(release_id)
        if final.exists():
            self.verify(release_id)
            return str(final)
        manifest = _source_manifest(source)
        self._root.mkdir(parents=True, exist_ok=True)
        self._remove_partials()
        self._require_space(manifest)
        partial = self._root / f"{PARTIAL_PREFIX}{release_id}"
        try:
            _copy_model(source, into=partial, manifest=manifest)
        except (OSError, ManifestError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TransferFailed(f"{source} could not be copied to {partial}: {error}") from error
        partial.rename(final)
        sync_directory(self._root)
        return str(final)

    def verify(self, release_id: str) -> Manifest:
        """Read every file again and compare."""
        try:
            return verify(self._path(release_id), with_state=False)
        except ManifestError as error:
            raise TransferFailed(f"Release {release_id} is damaged: {error}") from error

    def activate(self, release_id: str) -> None:
        """A symbolic link under another name, then a rename over `current`."""
        if not self._path(release_id).is_dir():
            raise NotDeployable(f"There is no release {release_id} in {self._root}.")
        temporary = self._root / f".{CURRENT_LINK}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(release_id)
        temporary.replace(self._root / CURRENT_LINK)
        sync_directory(self._root)

    def current(self) -> str | None:
        """Read the link; None where there is none or it leads nowhere."""
        link = self._root / CURRENT_LINK
        return link.resolve().name if link.is_symlink() and link.exists() else None

    def prune(self, *, keep: int, protect: Iterable[str]) -> list[str]:
        """By name, which begins with the generation."""
        kept = {*protect, self.current()}
        releases = sorted(path.name for path in self._root.glob("r*") if path.is_dir())
        doomed = [name for name in releases[: max(0, len(releases) - keep)] if name not in kept]
        for name in doomed:
            shutil.rmtree(self._root / name)
        return doomed

    def _path(self, release_id: str) -> Path:
        if not re.match(RELEASE_ID_PATTERN, release_id):
            raise NotDeployable(f"{release_id!r} is no release id.")
        return self._root / release_id

    def _require_space(self, manifest: Manifest) -> None:
        need = int(FREE_SPACE_FACTOR * sum(entry.num_bytes for entry in _model_files(manifest).values()))
        free = self._measure_free(self._root)
        if free < need:
            raise TransferFailed(
                f"{self._root} has {free} bytes free; the release needs {need}.",
                remedy="Make space, or lower TANDEM_DEPLOYMENT__KEEP_RELEASES.",
            )

    def _remove_partials(self) -> None:
        """What a killed deployment left; the caller holds the deployment's lease, so nobody writes there."""
        for path in self._root.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)


def _source_manifest(source: Path) -> Manifest:
    try:
        return read_manifest(source)
    except ManifestError as error:
        raise TransferFailed(str(error)) from error


def _model_files(manifest: Manifest) -> dict[str, FileEntry]:
    return {name: entry for name, entry in manifest.files.items() if not entry.is_state}


def _copy_model(source: Path, *, into: Path, manifest: Manifest) -> None:
    files = _model_files(manifest)
    for name in files:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
        target.chmod(READ_ONLY)
    write_manifest(into, manifest=manifest.changed(files=files))
    verify(into)
