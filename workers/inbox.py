"""The inbox: a file dropped there becomes a job; one that cannot is moved aside with its reason."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from config.settings import Settings
from registry.errors import DatasetError, printable
from registry.files import write_json
from registry.messages import TrainingSubmission
from registry.states import Priority

SUFFIX = ".jsonl"
MAX_STEM_BYTES = 200  # of the 255 that a file's name may have


def ready(
    settings: Settings,
    *,
    now_seconds: float | None = None,
    on_error: Callable[[Path, OSError], None] = lambda _path, _error: None,
) -> Iterator[tuple[Path, Priority]]:
    """Files that nobody has written to for a while, high first, each with its priority.

    `inbox/high`, `inbox/normal` and `inbox/low` set the priority; the inbox itself means normal. What cannot
    be looked at is handed to `on_error`, and hides no other.
    """
    now_seconds = time.time() if now_seconds is None else now_seconds
    inbox = settings.paths.inbox
    places = [(inbox / "high", Priority.HIGH), (inbox / "normal", Priority.NORMAL), (inbox, Priority.NORMAL)]
    for directory, priority in [*places, (inbox / "low", Priority.LOW)]:
        for path in _listed(directory, on_error=on_error):
            if _is_complete(path, settings=settings, now_seconds=now_seconds, on_error=on_error):
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


def _listed(directory: Path, *, on_error: Callable[[Path, OSError], None]) -> list[Path]:
    try:
        return sorted(
            path for path in directory.iterdir() if path.suffix == SUFFIX and not path.name.startswith(".")
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        on_error(directory, error)
        return []


def _is_complete(
    path: Path, *, settings: Settings, now_seconds: float, on_error: Callable[[Path, OSError], None]
) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False  # taken away since it was listed
    except OSError as error:
        on_error(path, error)
        return False
    # On a host whose clock was set back, a file seems to be written in times to come.
    age_seconds = abs(now_seconds - status.st_mtime)
    return stat.S_ISREG(status.st_mode) and age_seconds >= settings.schedule.inbox_settle_seconds
