"""Which releases were read whole and not touched since, so that asking for one again reads nothing.

A note is a hash over inode, size and both times of every file. Nobody can set an inode's change time back, so
whoever writes to a file, also through another link to it, breaks the note and the files are read again. What
a note cannot see is a disk that changes a file by itself: a rollback reads every file whatever is noted, and
so does the server before it serves one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from registry.files import sha256_file, sha256_text, write_atomically
from registry.manifests import MANIFEST_NAME

# The kernel's clock for files ticks every 1 to 10 ms: two writes within one tick bear the same time. Whoever
# has just written waits so long before it reads.
SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class Stamp:
    """How the files of a directory stand. `changed_at` is the newest change of any, seconds since 1970."""

    digest: str
    changed_at: float

    def is_settled(self, *, at: float) -> bool:
        """True where any write after that moment would show in the stamp."""
        return self.changed_at + SETTLE_SECONDS <= at


def stamp(directory: Path) -> Stamp:
    """Of every file but the manifest, which is read each time."""
    found = [
        (path.relative_to(directory).as_posix(), path.lstat())
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    ]
    files = [(name, at) for name, at in found if name != MANIFEST_NAME]
    lines = [f"{name}\0{at.st_ino} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns}" for name, at in files]
    return Stamp(sha256_text("\n".join(lines)), changed_at=max((at.st_ctime for _, at in files), default=0.0))


class Proofs:
    """Notes beside the releases, where no key that sends files can write."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, directory: Path, *, before: Stamp, begun_at: float) -> None:
        """Note that all was read since `begun_at`, unless something was touched meanwhile or just before.

        `before` is the stamp of the moment when the reading began.
        """
        if not before.is_settled(at=begun_at) or stamp(directory) != before:
            return
        self._forget_removed(directory.parent)
        write_atomically(self._root / directory.name, content=_text(directory, at=before).encode())

    def holds(self, directory: Path) -> bool:
        """True where it was noted and stands as it stood then, its manifest too."""
        try:
            return (self._root / directory.name).read_text() == _text(directory, at=stamp(directory))
        except (OSError, ValueError):
            return False

    def _forget_removed(self, releases: Path) -> None:
        if not self._root.is_dir():
            return
        for note in self._root.iterdir():
            if not (releases / note.name).is_dir():
                note.unlink(missing_ok=True)


def _text(directory: Path, *, at: Stamp) -> str:
    return f"{at.digest} {sha256_file(directory / MANIFEST_NAME)}\n"
