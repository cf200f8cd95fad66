"""Candidates and suites that another host sent: kept by content hash, bounded, never removed in use."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.errors import TransferFailed
from deploy.wire import SHA256_PATTERN

LOCK_SUFFIX = ".lock"
CONDEMNED_PREFIX = ".condemned-"
SUITE_NAME = "suite.jsonl"


class Cache:
    """A directory of entries `<sha256>/`, each with a lock file beside it that its users share.

    The kernel gives a lock back when its holder dies, so nothing is kept for a dead evaluation.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes

    def path(self, name: str) -> Path:
        """Where an entry lies, or would."""
        if not re.fullmatch(SHA256_PATTERN, name):
            raise TransferFailed(f"{name!r} is no content hash.")
        return self._root / name

    def names(self) -> list[str]:
        """Every entry, the one that was used longest ago first."""
        if not self._root.is_dir():
            return []
        found = [path for path in self._root.iterdir() if re.fullmatch(SHA256_PATTERN, path.name)]
        return [path.name for path in sorted(found, key=lambda path: (_used_at(path), path.name))]

    @contextmanager
    def using(self, name: str) -> Iterator[Path | None]:
        """The entry, kept while the caller uses it; None where there is none. Counts as a use."""
        path = self.path(name)
        if not path.is_dir():
            yield None
            return
        with self._lock(name, operation=fcntl.LOCK_SH):
            if path.is_dir():
                _note_use(path)
            yield path if path.is_dir() else None

    def add(self, arrived: Path, *, name: str) -> Path:
        """Take a verified directory in by renaming it. Whole or absent; adding again keeps the first."""
        target = self.path(name)
        self._root.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(arrived, ignore_errors=True)
            return target
        arrived.rename(target)
        os.utime(target)
        return target

    def make_room(self, num_bytes: int, *, keep: str) -> list[str]:
        """Remove what was used longest ago until so much more fits; `TransferFailed` where it cannot.

        What is in use stays, and so does `keep`.
        """
        removed = []
        sizes = {name: tree_bytes(self.path(name)) for name in self.names() if name != keep}
        total = sum(sizes.values())
        for name, size in sizes.items():
            if total + num_bytes <= self._max_bytes:
                break
            if self._remove(name):
                removed.append(name)
                total -= size
        if total + num_bytes > self._max_bytes:
            raise TransferFailed(
                f"The cache {self._root} may hold {self._max_bytes} bytes; {total} are in use "
                f"and {num_bytes} more do not fit.",
                remedy="Raise TANDEM_DEPLOY__CACHE_BYTES there, or wait for the evaluations that run.",
            )
        return removed

    def discard(self, name: str) -> None:
        """Remove a damaged entry, unless it is in use."""
        if self.path(name).is_dir():
            self._remove(name)

    def _remove(self, name: str) -> bool:
        try:
            with self._lock(name, operation=fcntl.LOCK_EX | fcntl.LOCK_NB):
                condemned = self._root / f"{CONDEMNED_PREFIX}{name}-{time.monotonic_ns()}"
                self.path(name).rename(condemned)
        except BlockingIOError:
            return False
        for left in self._root.glob(f"{CONDEMNED_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        return True

    @contextmanager
    def _lock(self, name: str, *, operation: int) -> Iterator[None]:
        with (self._root / f"{name}{LOCK_SUFFIX}").open("w") as stream:
            fcntl.flock(stream, operation)
            yield


def tree_bytes(directory: Path) -> int:
    """Of every file below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _note_use(path: Path) -> None:
    """Another user's entry can be read and not marked: it then counts as used when it came."""
    with suppress(PermissionError):
        os.utime(path)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
