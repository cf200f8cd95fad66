"""Where releases lie: directories of read-only files with a manifest. `current` points at one of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from deploy.errors import NotDeployable, TransferFailed
from registry.errors import ManifestError
from registry.files import sync_directory
from registry.manifests import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    read_manifest,
    verify,
    weights_sha256,
    write_manifest,
)
from registry.serving import CURRENT_LINK, RELEASE_ID_PATTERN

PARTIAL_PREFIX = ".partial-"
READ_ONLY = 0o444
FREE_SPACE_FACTOR = 1.1

# What `deploy.plan.release_id` makes; nothing else in the directory is ever removed.
PRUNABLE_PATTERN = r"r(\d+)-[0-9a-f]{8}"

FreeBytes = Callable[[Path], int]
ExtraFiles = Mapping[str, bytes]
NO_FILES: ExtraFiles = MappingProxyType({})


class ReleaseTarget(Protocol):
    """A place that keeps releases: a directory here, or a host behind ssh.

    These five, because each must be atomic where the files lie: bring a release whole, prove it, make it
    current, say which is current, and remove the old ones. All raise `DeployError` only.
    """

    def push(self, source: Path, *, release_id: str, extra_files: ExtraFiles = NO_FILES) -> str:
        """Bring the model files of a checkpoint; the release's path. Doing it again completes it.

        `extra_files` are contents by name: files of the release that the checkpoint has not, in its manifest
        as any other.
        """

    def verify(self, release_id: str) -> Manifest:
        """Check every sha256 where the files lie; `TransferFailed` names the first that differs."""

    def activate(self, release_id: str, *, is_return: bool = False) -> None:
        """Point `current` at a release, atomically and durably.

        Never from a newer generation to an older one, unless that is a return: a rollback.
        """

    def current(self) -> str | None:
        """The release that `current` points at."""

    def prune(self, *, keep: int, protect: Iterable[str]) -> list[str]:
        """Remove all but the newest `keep` releases, never a protected one or the current; what went."""


def free_bytes(directory: Path) -> int:
    """Free space where a directory lies."""
    return shutil.disk_usage(directory).free


def check_release_id(release_id: str) -> None:
    """`NotDeployable` unless it is one name of a directory that is not the link `current`."""
    if not re.fullmatch(RELEASE_ID_PATTERN, release_id) or release_id == CURRENT_LINK:
        raise NotDeployable(f"{release_id!r} is no release id.", remedy="Example: r000012-1a2b3c4d.")


def check_step(release_id: str, *, current: str | None, is_return: bool) -> None:
    """`NotDeployable` where an older best would overwrite a newer."""
    wanted, served = generation_of(release_id), generation_of(current or "")
    if is_return or wanted is None or served is None or wanted >= served:
        return
    raise NotDeployable(
        f"{release_id} is older than {current}, which is current.",
        remedy="`tandem deploy rollback` goes back. After a new registry, remove the old releases.",
    )


def generation_of(release_id: str) -> int | None:
    """The number in a release's id; None where tandem did not make it."""
    match = re.fullmatch(PRUNABLE_PATTERN, release_id)
    return None if match is None else int(match[1])


def prunable(names: Iterable[str], *, keep: int, protect: Iterable[str | None]) -> list[str]:
    """The releases to remove, oldest first, by generation: a number, never its digits as text."""
    found = sorted((int(match[1]), name) for name in names if (match := re.fullmatch(PRUNABLE_PATTERN, name)))
    protected = set(protect)
    return [name for _, name in found[: max(0, len(found) - keep)] if name not in protected]


class LocalTarget:
    """Releases in a directory of this machine. One deployment at a time: the caller sees to that."""

    def __init__(self, releases_dir: Path, *, measure_free: FreeBytes = free_bytes) -> None:
        self._root = releases_dir
        self._measure_free = measure_free

    def push(self, source: Path, *, release_id: str, extra_files: ExtraFiles = NO_FILES) -> str:
        """Copy beside, verify the copy, rename: a release directory is whole or absent."""
        final = self._path(release_id)
        manifest = source_manifest(source)
        if final.exists():
            self._require_same(manifest, release_id=release_id)
            return str(final)
        with self._failing(f"{source} could not be brought to {final}"):
            self._root.mkdir(parents=True, exist_ok=True)
            self._remove_partials()
            self._require_space(manifest)
            partial = self._root / f"{PARTIAL_PREFIX}{release_id}"
            try:
                _copy_model(source, into=partial, manifest=manifest, extra_files=extra_files)
            except (OSError, ManifestError):
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(final)
            sync_directory(self._root)
        return str(final)

    def verify(self, release_id: str) -> Manifest:
        """Read every file again and compare; a file that the manifest does not name is damage too."""
        directory = self._path(release_id)
        remedy = "Deploy the checkpoint again, or roll back to another release."
        with self._failing(f"Release {release_id} is damaged", remedy=remedy):
            return _verified(directory)

    def activate(self, release_id: str, *, is_return: bool = False) -> None:
        """A symbolic link under another name, then a rename over `current`."""
        if not self._path(release_id).is_dir():
            raise NotDeployable(f"There is no release {release_id} in {self._root}.")
        check_step(release_id, current=self.current(), is_return=is_return)
        temporary = self._root / f"{PARTIAL_PREFIX}{CURRENT_LINK}"
        with self._failing(f"{self._root / CURRENT_LINK} could not be pointed at {release_id}"):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(release_id)
            temporary.replace(self._root / CURRENT_LINK)
            sync_directory(self._root)

    def current(self) -> str | None:
        """Read the link; None where there is none, and where it leads nowhere or out of the directory."""
        link = self._root / CURRENT_LINK
        if not link.is_symlink() or not link.is_dir():
            return None
        release = self._root / link.readlink()
        return release.name if release.parent.resolve() == self._root.resolve() else None

    def prune(self, *, keep: int, protect: Iterable[str]) -> list[str]:
        """Each is renamed first, so that a release directory is never there by half."""
        if not self._root.is_dir():
            return []
        with self._failing(f"An old release in {self._root} could not be removed"):
            names = [path.name for path in self._root.iterdir() if path.is_dir() and not path.is_symlink()]
            doomed = prunable(names, keep=keep, protect=[*protect, self.current()])
            for name in doomed:
                condemned = self._root / f"{PARTIAL_PREFIX}{name}"
                (self._root / name).rename(condemned)
                shutil.rmtree(condemned)
        return doomed

    def _path(self, release_id: str) -> Path:
        check_release_id(release_id)
        return self._root / release_id

    @contextmanager
    def _failing(self, what: str, *, remedy: str = "") -> Iterator[None]:
        try:
            yield
        except (OSError, ManifestError) as error:
            raise TransferFailed(f"{what}: {error}", remedy=remedy) from error

    def _require_same(self, manifest: Manifest, *, release_id: str) -> None:
        """A release is never written over: it may be what is served."""
        lying = self.verify(release_id)
        if lying.weights_sha256 != manifest.weights_sha256:
            raise TransferFailed(
                f"Release {release_id} exists with other weights ({lying.weights_sha256[:12]}).",
                remedy="It is left from another registry: remove or rename the directory.",
            )

    def _require_space(self, manifest: Manifest) -> None:
        need = int(FREE_SPACE_FACTOR * sum(entry.num_bytes for entry in model_files(manifest).values()))
        free = self._measure_free(self._root)
        if free < need:
            raise TransferFailed(
                f"{self._root} has {free} bytes free; the release needs {need}.",
                remedy="Make space, or lower TANDEM_DEPLOYMENT__KEEP_RELEASES.",
            )

    def _remove_partials(self) -> None:
        """What a killed deployment or removal left; nobody else writes here."""
        for path in self._root.glob(f"{PARTIAL_PREFIX}*"):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


def model_files(manifest: Manifest) -> dict[str, FileEntry]:
    """The files a release carries: all but training state."""
    return {name: entry for name, entry in manifest.files.items() if not entry.is_state}


def entries_of(extra_files: ExtraFiles) -> dict[str, FileEntry]:
    """What a manifest says of files whose content is at hand."""
    return {
        name: FileEntry(sha256=sha256(content).hexdigest(), num_bytes=len(content))
        for name, content in extra_files.items()
    }


def source_manifest(source: Path) -> Manifest:
    """The manifest of a checkpoint, its identity checked; `TransferFailed` where it is none."""
    try:
        manifest = read_manifest(source)
        _require_weights(manifest, directory=source)
    except ManifestError as error:
        raise TransferFailed(error.message, remedy=error.remedy) from error
    return manifest


def _require_weights(manifest: Manifest, *, directory: Path) -> None:
    if weights_sha256(manifest.files) != manifest.weights_sha256:
        raise ManifestError(f"{directory}: the manifest's weights_sha256 is not that of its weight files.")


def _copy_model(source: Path, *, into: Path, manifest: Manifest, extra_files: ExtraFiles) -> None:
    files = model_files(manifest)
    for name in files:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
        target.chmod(READ_ONLY)
    for name, content in extra_files.items():
        (into / name).write_bytes(content)
        (into / name).chmod(READ_ONLY)
    write_manifest(into, manifest=manifest.changed(files=files | entries_of(extra_files)))
    (into / MANIFEST_NAME).chmod(READ_ONLY)
    _verified(into)


def _verified(directory: Path) -> Manifest:
    manifest = verify(directory, with_state=False)
    _require_weights(manifest, directory=directory)
    lying = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    unlisted = sorted(lying - {*manifest.files, MANIFEST_NAME})
    if unlisted:
        raise ManifestError(f"{directory} holds {unlisted[0]}, which its manifest does not name.")
    return manifest
