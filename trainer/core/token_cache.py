"""Tokens kept between runs: a file is tokenised once for each way of tokenising it.

An entry is a directory named by a hash of all that decides the tokens: the file's content, the tokenizer with
its chat template, the limits, and the code that renders rows. It is written under a temporary name, sealed
and renamed, so it is whole or absent; each opening checks every byte. Nobody waits for anybody: two processes
at once both tokenise, the first to finish keeps its place. What a killed process left is known by its lock,
which the kernel freed, and removed by the next.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import JsonValue, ValidationError

from registry import row_formats, rows
from registry.files import sha256_file, sha256_text, sync_directory, write_json
from registry.profiles import base as profiles
from registry.records import Record
from trainer.config.job import Overlong
from trainer.core import chat, data, token_files
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, open_tokens, tokenize_into
from trainer.core.token_files import META_NAME, read_sealed, seal
from trainer.errors import ConfigError, DataError, DiskFull

TEMPORARY_PREFIX = ".new-"
REMOVED_PREFIX = ".old-"
SOURCES_NAME = ".sources"
LOCK_SUFFIX = ".lock"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# A file that was changed so shortly before it was hashed may be changed again within one tick of its time.
SETTLED_NS = 1_000_000_000
# Where rows become tokens: other code, other tokens.
CODE = (row_formats, rows, profiles, chat, data, token_files)


class Source(Record):
    """A file that was hashed: as long as the system's account of it is this one, so is its content."""

    num_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    sha256: str


class TokenCache:
    """Tokenised files below `directory`, `max_bytes` of them at most; the least recently used go first."""

    def __init__(self, directory: Path, *, max_bytes: int, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._warn = warn

    def open(
        self,
        path: Path,
        *,
        encoder: ChatEncoder,
        max_length: int,
        overlong: Overlong,
        settings: Mapping[str, JsonValue] | None = None,
    ) -> TokenizedDataset:
        """The tokens of a file, from the cache if they are there whole.

        `settings` is whatever else decides the tokens. Raises what `tokenize_file` does, and `DiskFull`.
        """
        with _named_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._sweep()
            limits: dict[str, JsonValue] = {"max_length": max_length, "overlong": overlong}
            key = self._key(path, encoder=encoder, settings={**limits, **(settings or {})})
            found = self._find(key)
            if found is not None:
                return found
            with self._new_directory() as new:
                files = tokenize_into(
                    new, path=path, encoder=encoder, max_length=max_length, overlong=overlong
                )
                dataset = open_tokens(new, files=files)
                seal(new, files=files.changed(digest=dataset.digest))
                self._keep(new, key=key)
                return dataset

    def _find(self, key: str) -> TokenizedDataset | None:
        entry = self._directory / key
        if not entry.is_dir():
            return None
        try:
            files = read_sealed(entry)
            (entry / META_NAME).touch()
            return open_tokens(entry, files=files)
        except (DataError, OSError) as error:
            self._warn(f"The cached tokens {key[:16]} are not used and made anew: {error}")
            self._remove(entry)
            return None

    def _keep(self, new: Path, *, key: str) -> None:
        if _num_bytes(new) > self._max_bytes:
            return
        try:
            new.rename(self._directory / key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return  # another process was faster; its tokens are the same
        sync_directory(self._directory)
        self._evict(spared=key)

    def _evict(self, *, spared: str) -> None:
        """Who has a removed entry open keeps it: files live as long as they are mapped."""
        entries = [
            (path.joinpath(META_NAME).stat().st_mtime_ns, _num_bytes(path), path)
            for path in self._directory.iterdir()
            if not path.name.startswith(".") and path.joinpath(META_NAME).is_file()
        ]
        num_bytes = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if num_bytes > self._max_bytes and path.name != spared:
                self._remove(path)
                num_bytes -= size

    def _remove(self, entry: Path) -> None:
        """Renamed first: nobody finds half of it."""
        gone = Path(tempfile.mkdtemp(dir=self._directory, prefix=REMOVED_PREFIX))
        with suppress(FileNotFoundError):  # another process removed it
            entry.rename(gone / entry.name)
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _new_directory(self) -> Iterator[Path]:
        """A directory beside a lock that says that its maker lives: locked before, unlocked after it."""
        with _new_lock(self._directory) as lock:
            new = lock.with_suffix("")
            try:
                new.mkdir()
                yield new
            finally:
                shutil.rmtree(new, ignore_errors=True)  # where it was kept, it has another name by now
                lock.unlink(missing_ok=True)

    def _sweep(self) -> None:
        for path in self._directory.glob(f"{REMOVED_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)
        for lock in self._directory.glob(f"{TEMPORARY_PREFIX}*{LOCK_SUFFIX}"):
            if _is_free(lock):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)

    def _key(self, path: Path, *, encoder: ChatEncoder, settings: Mapping[str, JsonValue]) -> str:
        parts = {
            "content": self._content_sha256(path),
            "encoder": encoder.identity,
            "settings": dict(settings),
            "code": [sha256_file(Path(str(module.__file__))) for module in CODE],
        }
        return sha256_text(json.dumps(parts, sort_keys=True))

    def _content_sha256(self, path: Path) -> str:
        """Hashing takes a second per gigabyte or two, so what was hashed is noted with the file's times."""
        note = self._directory / SOURCES_NAME / f"{sha256_text(str(path.resolve()))}.json"
        with _named_reading(path):
            before = path.stat()
        known = _read_source(note)
        if known is not None and known == _source(before, sha256=known.sha256):
            return known.sha256
        with _named_reading(path):
            sha256 = sha256_file(path)
        source = _source(before, sha256=sha256)
        if source == _source(path.stat(), sha256=sha256):
            write_json(note, value=source.model_dump(mode="json"), is_durable=False)
        return sha256


def _read_source(note: Path) -> Source | None:
    try:
        source = Source.model_validate_json(note.read_bytes())
        noted_ns = note.stat().st_mtime_ns
    except (OSError, ValidationError):
        return None
    return source if noted_ns - max(source.changed_ns, source.modified_ns) > SETTLED_NS else None


def _source(found: os.stat_result, *, sha256: str) -> Source:
    return Source(
        num_bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        changed_ns=found.st_ctime_ns,
        inode=found.st_ino,
        sha256=sha256,
    )


@contextmanager
def _new_lock(directory: Path) -> Iterator[Path]:
    while True:
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=TEMPORARY_PREFIX, suffix=LOCK_SUFFIX)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if Path(name).exists():  # else another process took it for abandoned before it was locked
                yield Path(name)
                return
        finally:
            os.close(descriptor)


def _is_free(lock: Path) -> bool:
    """True where its holder is gone."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _num_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


@contextmanager
def _named_reading(path: Path) -> Iterator[None]:
    """What is to be learnt cannot be read: that is not the cache's fault."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check the path and its permissions."
        ) from error


@contextmanager
def _named_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(
                f"{directory} has no space left for the tokens: {error}", remedy="Free space there."
            ) from error
        raise ConfigError(
            f"The tokens cannot be kept in {directory}: {error}",
            field="data.token_cache_dir",
            value=str(directory),
            remedy="Name a directory that can be written to, or set max_token_cache_bytes to 0.",
        ) from error
