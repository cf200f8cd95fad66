"""The inbox: a file dropped there becomes a job; one that cannot is moved aside with its reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from config.settings import Settings
from registry.errors import DatasetError, printable
from registry.files import write_json
from registry.messages import TrainingSubmission
from registry.states import Priority

SUFFIX = ".jsonl"
MAX_STEM_BYTES = 200  # of the 255 that a file's name may have


def ready(settings: Settings, *, now_seconds: float | None = None) -> Iterator[tuple[Path, Priority]]:
    """Files that nobody has written to for a while, high first, each with its priority.

    `inbox/high`, `inbox/normal` and `inbox/low` set the priority; the inbox itself means normal.
    """
    now_seconds = time.time() if now_seconds is None else now_seconds
    inbox = settings.paths.inbox
    places = [(inbox / "high", Priority.HIGH), (inbox / "normal", Priority.NORMAL), (inbox, Priority.NORMAL)]
    for directory, priority in [*places, (inbox / "low", Priority.LOW)]:
        for path in _complete_files(directory, settings=settings, now_seconds=now_seconds):
            yield path, priority


def request_for(path: Path, *, priority: Priority) -> TrainingSubmission:
    """What a dropped file asks for; `DatasetError` where its name is no text."""
    if printable(str(path)) != str(path):
        raise DatasetError(f"The name {path.name!r} is not UTF-8.", remedy="Rename the file.")
    return TrainingSubmission(dataset=str(path), priority=priority, submitted_by="inbox")


def done(path: Path) -> None:
    """Take a submitted file out of the inbox; its copy is in the dataset store."""
    path.unlink(missing_ok=True)


def refuse(path: Path, *, settings: Settings, reason: str) -> Path:
    """Move a file that cannot become a job to `queue/failed`, its reason beside it.

    It keeps its name where that is text and leaves room for `.reason.json`.
    """
    stem = _shortened(printable(path.stem))
    target = settings.paths.refused / f"{stem}{path.suffix}"
    number = 1
    while target.exists():
        target = settings.paths.refused / f"{stem}.{number}{path.suffix}"
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        target.with_name(f"{target.name}.reason.json"),
        value={"file": printable(path.name), "reason": printable(reason)},
    )
    path.rename(target)
    return target


def _shortened(stem: str) -> str:
    return stem.encode()[:MAX_STEM_BYTES].decode(errors="ignore")


def _complete_files(directory: Path, *, settings: Settings, now_seconds: float) -> list[Path]:
    if not directory.is_dir():
        return []
    settle = settings.schedule.inbox_settle_seconds
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix == SUFFIX
        and not path.name.startswith(".")
        and path.is_file()
        and not path.is_symlink()
        # On a host whose clock was set back, a file seems to be written in times to come.
        and abs(now_seconds - path.stat().st_mtime) >= settle
    )
