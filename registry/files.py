"""Files that are whole or absent: atomic writes, hashes, strict JSON."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

HASH_BLOCK_BYTES = 1 << 20


def write_atomically(path: Path, *, content: bytes, mode: int = 0o644, is_durable: bool = True) -> None:
    """Write beside `path`, fsync, rename over it: a reader sees the old or the new, whole.

    What can be written again from the registry need not be durable: without fsync it costs far less.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if is_durable:
                os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if is_durable:
        sync_directory(path.parent)


def write_json(path: Path, *, value: Any, is_durable: bool = True) -> None:
    """Write strict JSON (no NaN, no Infinity) atomically; `ValueError` where the value is not."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=2)
    write_atomically(path, content=text.encode() + b"\n", is_durable=is_durable)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make every file below `path`, and their names, durable."""
    for entry in sorted(path.rglob("*")):
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_directory(path)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hex digest of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
