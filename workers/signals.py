"""Commands by file: whoever creates `control/pause` pauses, as by `tandem job pause`.

A file's name is the command and its content the job's id; empty means the job that runs (for `resume` the
one that was paused last). `drain` and `undrain` take a host's name; empty means the only host that there is.
The file is taken away, and `control/<command>.answer.json` says what became of it.
"""

from __future__ import annotations

import logging
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import AwareDatetime, ValidationError

from registry import queue
from registry.errors import NotFound, RegistryUnavailable, TandemError
from registry.files import write_json
from registry.messages import Drain, DrainedHost, JobCommand, Undrain
from registry.records import Event, Host, Record, TrainingJob
from registry.states import Command, JobState
from registry.store import Transaction
from workers import steering
from workers.context import Context
from workers.errors import RequestError

log = logging.getLogger(__name__)

DRAIN, UNDRAIN, PAUSE_AFTER = "drain", "undrain", "pause-after"
NAMES = (*(str(command) for command in Command), DRAIN, UNDRAIN, PAUSE_AFTER)
MAX_BYTES = 200
REASON = "asked for by file"


class Signal(NamedTuple):
    """A file in the control folder, told from another of its name by inode and time."""

    path: Path
    inode: int
    modified_ns: int


class SignalAnswer(Record):
    """`control/<command>.answer.json`: whether it is in effect, was passed on, or cannot be."""

    command: str
    subject: str
    answer: str
    answered_at: AwareDatetime


def obey(context: Context) -> list[SignalAnswer]:
    """Do what every signal in the control folder says, write the answer, take the file away.

    In this order, so that none is lost where this process is killed; one that is found again was noted, and
    is not obeyed again. Whatever stands in the way is logged and raises nothing: who looks here is training
    a job, or about to scan the inbox.
    """
    try:
        answers = _obey_all(context)
    except TandemError as error:
        context.told.once("signals", log=log, words=f"The control folder waits: {error}")
        return []
    context.told.is_over("signals")
    return answers


def _obey_all(context: Context) -> list[SignalAnswer]:
    if not _signals(context):
        return []
    with context.holding("signals") as lease:
        # Looked for again: another process may have obeyed them just now.
        return [] if lease is None else [_obey(context, signal=signal) for signal in _signals(context)]


def _signals(context: Context) -> list[Signal]:
    """What lies there, but for what was obeyed and could not be taken away."""
    found = (_find(context, path=context.settings.paths.control / name) for name in NAMES)
    return [signal for signal in found if signal is not None and signal not in context.told]


def _find(context: Context, *, path: Path) -> Signal | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        context.told.once(path, log=log, words=f"{path} cannot be looked at: {error.strerror}")
        return None
    is_file = stat.S_ISREG(status.st_mode)
    return Signal(path, status.st_ino, status.st_mtime_ns) if is_file else None


def _obey(context: Context, *, signal: Signal) -> SignalAnswer:
    answer = _answer(replace(context, message_id=str(signal)), path=signal.path)
    log.info("%s by file: %s %s", answer.command, answer.subject, answer.answer)
    _write(context, answer, path=signal.path.with_name(f"{signal.path.name}.answer.json"))
    try:
        signal.path.unlink(missing_ok=True)
    except OSError as error:
        context.told.once(signal, log=log, words=f"{signal.path} cannot be taken away: {error.strerror}")
    return answer


def _answer(context: Context, *, path: Path) -> SignalAnswer:
    subject = ""
    try:
        subject = text = _read(path)
        subject, answer = _carry_out(context, name=path.name, text=text)
    except RegistryUnavailable:
        raise  # not the file's fault: it stays for the next look
    except (TandemError, ValidationError) as error:
        answer = f"refused: {error}"
    return SignalAnswer(
        command=path.name, subject=subject, answer=answer, answered_at=context.registry.clock()
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", errors="replace").strip()
    except OSError as error:
        remedy = "Make it as the user whom tandem runs as."
        raise RequestError(f"it cannot be read ({error.strerror}).", remedy=remedy) from None


def _write(context: Context, answer: SignalAnswer, *, path: Path) -> None:
    try:
        write_json(path, value=answer.model_dump(mode="json"))
        context.told.is_over(path)
    except OSError as error:
        words = f"{path} cannot be written ({error.strerror}): {answer.subject} {answer.answer}"
        context.told.once(path, log=log, words=words)


def _carry_out(context: Context, *, name: str, text: str) -> tuple[str, str]:
    if name in (DRAIN, UNDRAIN):
        with context.registry.reading() as tx:
            host = text or _host_meant(tx)
        if name == UNDRAIN:
            return host, _said(steering.undrain(context, Undrain(host=host, reason=REASON)))
        return host, _said(steering.drain(context, Drain(host=host, reason=REASON)))
    with context.registry.reading() as tx:
        job_id = text or _meant(tx, name=name)
        host = _host_meant(tx, job_id=job_id) if name == PAUSE_AFTER else ""
    if name == PAUSE_AFTER:
        return job_id, _said(steering.drain(context, Drain(host=host, after_job_id=job_id, reason=REASON)))
    commanded = steering.command(context, JobCommand(job_id=job_id, reason=REASON), what=Command(name))
    return job_id, "in effect" if commanded.is_in_effect else "asked for"


def _said(drained: DrainedHost) -> str:
    if drained.is_in_effect:
        return "in effect"
    return f"asked for; {drained.missing}" if drained.missing else "asked for"


def _host_meant(tx: Transaction, *, job_id: str | None = None) -> str:
    """The host that trains the job; else the only one that there is."""
    if job_id is not None and (host := steering.host_of(tx, job_id=job_id)):
        return host
    known = [host.id for host in tx.find(Host) if job_id is None or "train" in host.roles]
    if len(known) == 1:
        return known[0]
    remedy = "Write its name into the file" if job_id is None else f"`tandem drain HOST --after {job_id}`"
    seen = ", ".join(known) or "none was seen yet"
    raise RequestError("which host is meant is not clear.", remedy=f"{remedy}: {seen}.")


def _meant(tx: Transaction, *, name: str) -> str:
    if name == Command.RESUME:
        found = sorted(tx.find(TrainingJob, state=JobState.PAUSED), key=partial(_paused_place, tx))[-1:]
    elif name == Command.RETRY:
        found = tx.find(TrainingJob, state=JobState.FAILED, newest_first="finished_at", limit=1)
    else:
        found = queue.running(tx)
    if not found:
        raise NotFound(
            f"There is no job that {name} could mean.", remedy=f"Write a job's id into control/{name}."
        )
    return found[0].id


def _paused_place(tx: Transaction, job: TrainingJob) -> int:
    """Among all events, that of its last pause."""
    pauses = tx.find(Event, subject_id=job.id, after=str(JobState.PAUSED), newest_first="id", limit=1)
    return (pauses[0].id or 0) if pauses else 0
