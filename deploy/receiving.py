"""Where another host's files arrive: room for them first, every sha256 after, then a rename into place.

The data key writes below `incoming/` alone. What it left there is believed only once it was read here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from deploy.cache import Cache
from deploy.config import GateConfig
from deploy.errors import TransferFailed
from deploy.proofs import SETTLE_SECONDS, Proofs, stamp
from deploy.target import (
    FREE_SPACE_FACTOR,
    READ_ONLY,
    FreeBytes,
    LocalTarget,
    check_release_id,
    free_bytes,
)
from deploy.wire import Parcel, Slot
from registry.files import sha256_file, sync_directory, sync_tree
from registry.manifests import MANIFEST_NAME, FileEntry, Manifest, read_manifest, write_manifest

BASE = "base"
PROOFS = ".proofs"
DIRECTORY_MODE = 0o755


class Receiver:
    """Takes parcels in. One at a time: the gate holds the lock."""

    def __init__(
        self,
        config: GateConfig,
        *,
        host: str,
        clock: Callable[[], datetime],
        sleep: Callable[[float], None],
        measure_free: FreeBytes = free_bytes,
    ) -> None:
        self._incoming = config.incoming_dir
        self._sealing = config.incoming_dir.with_name(f"{config.incoming_dir.name}-sealing")
        self._releases_dir = config.releases_dir
        self._releases = LocalTarget(config.releases_dir)
        self._proofs = Proofs(config.incoming_dir.with_name(PROOFS))
        self._cache = Cache(config.cache_dir, max_bytes=config.cache_bytes)
        self._measure_free = measure_free
        self._host = host
        self._clock = clock
        self._sleep = sleep

    def begin(self, parcel: Parcel) -> Slot:
        """Say whether it is there; else make room and say where it goes. `TransferFailed` names the need."""
        final = self._final(parcel)
        if final.is_dir() and self._is_whole(parcel):
            return self._slot(parcel, is_present=True)
        for directory in (self._incoming, final.parent):
            directory.mkdir(parents=True, exist_ok=True)
        self._forget_others(parcel)
        if parcel.kind != "release":
            self._cache.make_room(parcel.num_bytes, keep=parcel.name)
        self._require_space(parcel)
        arriving = self._incoming / parcel.directory
        arriving.mkdir(exist_ok=True)
        _move(parcel.files, source=self._sealing / parcel.directory, target=arriving)
        arriving.chmod(DIRECTORY_MODE)
        if parcel.kind == "release":
            self._lay_base()
        return self._slot(parcel, is_present=False)

    def seal(self, parcel: Parcel) -> str:
        """Verify what arrived and rename it into place; the path. What differs is removed, to come again."""
        final = self._final(parcel)
        if final.is_dir():
            return str(final)
        self._take(parcel)
        shutil.rmtree(self._incoming / BASE, ignore_errors=True)  # a link less changes an inode's times
        arrived = self._sealing / parcel.directory
        self._sleep(SETTLE_SECONDS)
        begun_at, before = self._clock().timestamp(), stamp(arrived)
        self._check(parcel, directory=arrived)
        if parcel.manifest is not None:
            write_manifest(arrived, manifest=parcel.manifest)
            (arrived / MANIFEST_NAME).chmod(READ_ONLY)
        else:
            sync_tree(arrived)
        if parcel.kind == "release":
            arrived.rename(final)
            self._proofs.keep(final, before=before, begun_at=begun_at)
        else:
            self._cache.add(arrived, name=parcel.name)
        sync_directory(final.parent)
        shutil.rmtree(self._incoming / parcel.directory, ignore_errors=True)
        return str(final)

    def _take(self, parcel: Parcel) -> None:
        """Move what arrived to where no key can write, before it is read.

        A transfer whose sender was killed may still be at work in the directory that it knows.
        """
        shutil.rmtree(self._sealing, ignore_errors=True)
        sealed = self._sealing / parcel.directory
        _move(parcel.carried, source=self._incoming / parcel.directory, target=sealed)
        for name, content in parcel.contents.items():
            (sealed / name).parent.mkdir(parents=True, exist_ok=True)
            (sealed / name).write_bytes(content)
        for path in sealed.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(READ_ONLY)

    def _final(self, parcel: Parcel) -> Path:
        if parcel.kind == "release":
            check_release_id(parcel.name)
            return self._releases_dir / parcel.name
        return self._cache.path(parcel.name)

    def _is_whole(self, parcel: Parcel) -> bool:
        """A release is never written over; a damaged candidate is only a cache's and comes again."""
        if parcel.kind == "release":
            lying = self._read(parcel.name)
            if parcel.manifest and lying.weights_sha256 != parcel.manifest.weights_sha256:
                raise TransferFailed(
                    f"Release {parcel.name} exists with other weights ({lying.weights_sha256[:12]}).",
                    remedy="It is left from another registry: remove or rename the directory.",
                )
            return True
        with self._cache.using(parcel.name) as path:
            if path is not None and _differing(parcel, directory=path) == []:
                return True
        self._cache.discard(parcel.name)
        return False

    def _read(self, release_id: str) -> Manifest:
        """The manifest of a whole release: every file is read, unless that was done and none was touched."""
        directory = self._releases_dir / release_id
        if self._proofs.holds(directory):
            return read_manifest(directory)
        begun_at, before = self._clock().timestamp(), stamp(directory)
        lying = self._releases.verify(release_id)
        self._proofs.keep(directory, before=before, begun_at=begun_at)
        return lying

    def _forget_others(self, parcel: Parcel) -> None:
        """What other killed transfers of the same kind left."""
        for path in self._incoming.glob(f"{parcel.kind}-*"):
            if path.name != parcel.directory:
                shutil.rmtree(path, ignore_errors=True)

    def _require_space(self, parcel: Parcel) -> None:
        arrived = sum(
            path.stat().st_size
            for path in (self._incoming / parcel.directory).rglob("*")
            if path.is_file() and not path.is_symlink()
        )
        need = int(FREE_SPACE_FACTOR * max(0, parcel.num_bytes - arrived))
        free = self._measure_free(self._incoming)
        if free < need:
            raise TransferFailed(
                f"{self._host}:{self._incoming} has {free} bytes free; {parcel.kind} {parcel.name[:20]} "
                f"needs {need} more.",
                remedy="Make space there, or lower TANDEM_DEPLOYMENT__KEEP_RELEASES.",
            )

    def _lay_base(self) -> None:
        """Hard links to the current release, so that rsync can link what did not change, and no more."""
        shutil.rmtree(self._incoming / BASE, ignore_errors=True)
        current = self._releases.current()
        if current is not None:
            shutil.copytree(self._releases_dir / current, self._incoming / BASE, copy_function=os.link)

    def _check(self, parcel: Parcel, *, directory: Path) -> None:
        differing = _differing(parcel, directory=directory)
        for name in differing:
            (directory / name).unlink(missing_ok=True)
        if differing:
            _move(parcel.files, source=directory, target=self._incoming / parcel.directory)
            raise TransferFailed(
                f"{parcel.kind} {parcel.name[:20]} did not arrive on {self._host} as it was sent: "
                f"{differing[0]} differs, {len(differing)} in all.",
                remedy="It is sent again; if this repeats, check the disk of both hosts.",
            )

    def _slot(self, parcel: Parcel, *, is_present: bool) -> Slot:
        arriving = self._incoming / parcel.directory
        return Slot(
            is_present=is_present,
            directory=parcel.directory,
            incoming_dir=str(self._incoming),
            path=str(self._final(parcel)),
            base=BASE if (self._incoming / BASE).is_dir() else None,
            has_partial=any(
                (arriving / name).is_file() and (arriving / name).stat().st_size != entry.num_bytes
                for name, entry in parcel.files.items()
            ),
        )


def _move(names: Iterable[str], *, source: Path, target: Path) -> None:
    """Those of the files that are there."""
    for name in names:
        if (source / name).is_symlink() or (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).replace(target / name)


def _differing(parcel: Parcel, *, directory: Path) -> list[str]:
    """Names that are missing, changed, too many, or no files."""
    ours = {MANIFEST_NAME} if parcel.manifest is not None else set()
    lying = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not _is_folder(path)}
    extra = sorted(lying - set(parcel.files) - ours)
    return extra + [
        name for name, entry in sorted(parcel.files.items()) if not _is_sound(directory / name, entry=entry)
    ]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_sound(path: Path, *, entry: FileEntry) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.num_bytes:
        return False
    return sha256_file(path) == entry.sha256
