"""Keeps the folders of `queue/` for a person with `ls`: a file for each job that waits, runs or ended.

A file waits as `0001-words-job-7f3k2a9c.json`, in the order of its queue (`paused-...` where it is paused);
elsewhere its name begins with the time at which the job began or ended. They are projections: never read
back. A file whose name has this form and whose job is not there any more is removed, one that was changed
is written anew, and every other file in the folders is left alone: refused files of the inbox, for one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from config.settings import Settings
from registry import history, queue
from registry.errors import RegistryUnavailable
from registry.files import write_atomically
from registry.history import EndedJob
from registry.queue_files import JobFile, ReasonFile
from registry.records import Dataset, Record, TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry, Transaction
from workers.allowance import Allowance

log = logging.getLogger(__name__)

PROCESSING, FAILED, COMPLETED = "processing", "failed", "recently_completed"
FOLDERS = (*(str(queue) for queue in Priority), PROCESSING, FAILED, COMPLETED)
FAILED_STATES = (JobState.FAILED, JobState.REJECTED)
COMPLETED_STATES = (JobState.SUCCEEDED, JobState.STOPPED)

OURS = re.compile(r"(?:\d{4,}|paused|\d{8}T\d{6}Z)-.*-(job-[a-z0-9]+)(\.reason)?\.json")
LEFT_OVER = re.compile(rf"\.{OURS.pattern}\..+")  # of a writer that was killed
MAX_NAME_BYTES = 120
MAX_NEW_FILES = 1000  # a refresh: the rest comes with the next one
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Key:
    """Which file: folder, job, and whether it is the reason beside it."""

    folder: str
    job_id: str
    is_reason: bool = False


@dataclass(frozen=True)
class Wanted:
    """A file that should be there. Without content its time is the job's end, as long as it is unchanged."""

    name: str
    content: bytes | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True)
class Found:
    """A file that is there."""

    name: str
    num_bytes: int
    modified_ns: int


def refresh_if_cheap(registry: Registry, *, settings: Settings, allowance: Allowance) -> None:
    """The same where little is going on; where jobs end by the second, the sweep's refresh has to do."""
    with allowance.spending() as is_granted:
        if is_granted:
            refresh(registry, settings=settings)


def refresh(registry: Registry, *, settings: Settings) -> None:
    """Make the folders say what the registry says. They are for people: no work ends because of them."""
    try:
        with _alone(settings.paths.run / "queue.lock") as is_alone:
            if is_alone:  # else another process is at it, and the next sweep comes soon
                _refresh(registry, settings=settings)
    except (OSError, RegistryUnavailable) as error:
        log.warning("%s was not refreshed: %s", settings.paths.queue, error)


def _refresh(registry: Registry, *, settings: Settings) -> None:
    directory = settings.paths.queue
    with registry.reading() as tx:
        since = tx.now - timedelta(days=settings.projections.completed_days)
        wanted = _live_files(tx, settings=settings) | _ended_files(tx, since=since)
    missing = _settle(directory, wanted=wanted, found=_scan(directory))
    for page in _pages(missing):
        with registry.reading() as tx:
            jobs = {job.id: job for job in tx.find(TrainingJob, id=[key.job_id for key in page])}
            datasets = _datasets(tx, jobs=list(jobs.values()))
        for key in page:
            content = _ended_content(jobs.get(key.job_id), key=key, name=wanted[key].name, datasets=datasets)
            _write_ended(directory / key.folder / wanted[key].name, wanted=wanted[key], content=content)


def _live_files(tx: Transaction, *, settings: Settings) -> dict[Key, Wanted]:
    """What waits, is paused or runs."""
    waiting = queue.waiting(tx, rules=settings.queue)
    paused, running = tx.find(TrainingJob, state=JobState.PAUSED), queue.running(tx)
    datasets = _datasets(tx, jobs=[*waiting, *paused, *running])
    files: dict[Key, Wanted] = {}
    places = dict.fromkeys(Priority, 0)
    for job in waiting:
        places[job.priority] += 1
        name = _file_name(f"{places[job.priority]:04d}", name=job.name, job_id=job.id)
        files[Key(job.priority, job.id)] = Wanted(name, _job_content(job, datasets=datasets))
    for job in paused:
        name = _file_name("paused", name=job.name, job_id=job.id)
        files[Key(job.priority, job.id)] = Wanted(name, _job_content(job, datasets=datasets))
    for job in running:
        stamp = _stamp(job.started_at or job.submitted_at)
        name = _file_name(stamp, name=job.name, job_id=job.id)
        files[Key(PROCESSING, job.id)] = Wanted(name, _job_content(job, datasets=datasets))
    return files


def _ended_files(tx: Transaction, *, since: datetime) -> dict[Key, Wanted]:
    """What failed, and what succeeded lately: names only, however many there are."""
    files: dict[Key, Wanted] = {}
    for job in history.ended_jobs(tx, states=FAILED_STATES):
        files[Key(FAILED, job.id)] = _ended(job)
        files[Key(FAILED, job.id, is_reason=True)] = _ended(job, suffix=".reason")
    for job in history.ended_jobs(tx, states=COMPLETED_STATES, since=since):
        files[Key(COMPLETED, job.id)] = _ended(job)
    return files


def _ended(job: EndedJob, *, suffix: str = "") -> Wanted:
    name = _file_name(_stamp(job.ended_at), name=job.name, job_id=job.id, suffix=suffix)
    return Wanted(name, ended_at=job.ended_at)


def _scan(directory: Path) -> dict[Key, list[Found]]:
    """Our files, by what their names say; what a killed writer left behind is removed."""
    found: dict[Key, list[Found]] = {}
    for folder in FOLDERS:
        path = directory / folder
        try:
            path.mkdir(parents=True, exist_ok=True)
            with os.scandir(path) as entries:
                for entry in entries:
                    _note(entry, folder=folder, found=found)
        except OSError as error:
            log.warning("%s cannot be kept: %s", path, error)
    return found


def _note(entry: os.DirEntry[str], *, folder: str, found: dict[Key, list[Found]]) -> None:
    if LEFT_OVER.fullmatch(entry.name):
        _remove(Path(entry.path))
    matched = OURS.fullmatch(entry.name)
    if matched is None or entry.is_dir(follow_symlinks=False):
        return
    try:
        state = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return  # a person removed it just now
    key = Key(folder, matched[1], is_reason=matched[2] is not None)
    found.setdefault(key, []).append(Found(entry.name, state.st_size, state.st_mtime_ns))


def _settle(
    directory: Path, *, wanted: Mapping[Key, Wanted], found: Mapping[Key, Sequence[Found]]
) -> list[Key]:
    """Remove what no longer holds, rename what moved, write what waits or runs. What ended and is missing."""
    for key, files in found.items():
        keep = _kept(files, wanted=wanted.get(key))
        for stale in files:
            if stale is not keep:
                _remove(directory / key.folder / stale.name)
    missing = []
    for key, file in wanted.items():
        kept = _kept(found.get(key, ()), wanted=file)
        if kept is not None and kept.name != file.name:
            folder = directory / key.folder
            _rename(folder / kept.name, to=folder / file.name)
        if file.content is not None:
            _write_live(directory / key.folder / file.name, content=file.content)
        elif kept is None or not _is_unchanged(kept, ended_at=file.ended_at):
            missing.append(key)
    return missing[:MAX_NEW_FILES]


def _kept(files: Sequence[Found], *, wanted: Wanted | None) -> Found | None:
    if wanted is None or not files:
        return None
    return next((file for file in files if file.name == wanted.name), files[0])


def _is_unchanged(file: Found, *, ended_at: datetime | None) -> bool:
    """Its time is the job's end as long as nobody wrote to it."""
    return ended_at is not None and file.num_bytes > 0 and file.modified_ns == _nanoseconds(ended_at)


def _write_live(path: Path, *, content: bytes) -> None:
    try:
        if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content=content, is_durable=False)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)


def _write_ended(path: Path, *, wanted: Wanted, content: bytes | None) -> None:
    if content is None or wanted.ended_at is None:
        return  # it was tried again meanwhile
    try:
        write_atomically(path, content=content, is_durable=False)
        os.utime(path, ns=(_nanoseconds(wanted.ended_at),) * 2)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)


def _rename(path: Path, *, to: Path) -> None:
    try:
        path.replace(to)
    except OSError as error:
        log.warning("%s cannot be renamed: %s", path, error)


def _ended_content(
    job: TrainingJob | None, *, key: Key, name: str, datasets: Mapping[str, Dataset]
) -> bytes | None:
    states = FAILED_STATES if key.folder == FAILED else COMPLETED_STATES
    if job is None or job.state not in states:
        return None
    if not key.is_reason:
        return _job_content(job, datasets=datasets)
    last = job.problems[-1] if job.problems else None
    return _json(
        ReasonFile(
            file=name.replace(".reason.json", ".json"),
            reason=last.message if last else job.note or "no reason was noted",
            kind=last.kind if last else "unknown",
            attempts=job.attempts,
            remedy=f"`tandem job show {job.id}` tells its story; `tandem job retry {job.id}` tries again.",
        )
    )


def _job_content(job: TrainingJob, *, datasets: Mapping[str, Dataset]) -> bytes:
    data = datasets.get(job.dataset_id)
    fields = job.model_dump(include=set(JobFile.model_fields))
    return _json(
        JobFile(**fields, dataset=data.path if data else None, num_rows=data.num_rows if data else None)
    )


def _json(record: Record) -> bytes:
    plain = record.model_dump(mode="json")
    return (json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=2) + "\n").encode()


def _datasets(tx: Transaction, *, jobs: Sequence[TrainingJob]) -> dict[str, Dataset]:
    ids = sorted({job.dataset_id for job in jobs})
    pages = [ids[start : start + 500] for start in range(0, len(ids), 500)]
    return {found.id: found for page in pages for found in tx.find(Dataset, id=page)}


def _pages(keys: Sequence[Key], *, size: int = 200) -> Iterator[Sequence[Key]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _file_name(first: str, *, name: str, job_id: str, suffix: str = "") -> str:
    """A name that every file system takes, whatever the job is called."""
    plain = re.sub(r"[^\w.-]+", "_", name)
    short = plain.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "_"
    return f"{first}-{short}-{job_id}{suffix}.json"


def _stamp(at: datetime) -> str:
    return f"{at:%Y%m%dT%H%M%SZ}"


def _nanoseconds(at: datetime) -> int:
    """Whole seconds: not every file system keeps more."""
    return int(at.timestamp()) * NANOSECONDS


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """One process at a time, so that an older view never overwrites a newer one. Never waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
