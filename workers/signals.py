"""Commands by file: whoever creates `control/pause` pauses, as by `tandem job pause`.

A file's name is the command and its content the job's id; empty means the job that runs (for `resume` the
one that was paused last). It is taken away, and `control/<command>.answer.json` says what became of it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from registry import queue
from registry.errors import NotFound, TandemError
from registry.files import write_json
from registry.messages import Drain, JobCommand, Undrain
from registry.records import Record, TrainingJob
from registry.states import Command, JobState
from registry.store import Transaction
from workers import steering
from workers.context import Context

log = logging.getLogger(__name__)

DRAIN, UNDRAIN, PAUSE_AFTER = "drain", "undrain", "pause-after"
NAMES = (*(str(command) for command in Command), DRAIN, UNDRAIN, PAUSE_AFTER)
MAX_BYTES = 200
REASON = "asked for by file"


class SignalAnswer(Record):
    """`control/<command>.answer.json`: whether it is in effect, was passed on, or cannot be."""

    command: str
    subject: str
    answer: str
    answered_at: AwareDatetime


def obey(context: Context) -> list[SignalAnswer]:
    """Do what every signal in the control folder says, write the answer, take the file away.

    In this order, so that one is obeyed twice rather than lost where this process is killed.
    """
    if not _signals(context):
        return []
    with context.holding("signals") as lease:
        # Looked for again: another process may have obeyed them just now.
        return [] if lease is None else [_obey(context, path=path) for path in _signals(context)]


def _signals(context: Context) -> list[Path]:
    paths = [context.settings.paths.control / name for name in NAMES]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _obey(context: Context, *, path: Path) -> SignalAnswer:
    with path.open("rb") as file:
        text = file.read(MAX_BYTES).decode("utf-8", errors="replace").strip()
    answer = _answer(context, name=path.name, text=text)
    write_json(path.with_name(f"{path.name}.answer.json"), value=answer.model_dump(mode="json"))
    path.unlink(missing_ok=True)
    log.info("%s by file: %s %s", path.name, answer.subject, answer.answer)
    return answer


def _answer(context: Context, *, name: str, text: str) -> SignalAnswer:
    subject, answer = text, ""
    try:
        subject, answer = _carry_out(context, name=name, text=text)
    except (TandemError, ValidationError) as error:
        answer = f"refused: {error}"
    return SignalAnswer(command=name, subject=subject, answer=answer, answered_at=context.registry.clock())


def _carry_out(context: Context, *, name: str, text: str) -> tuple[str, str]:
    if name == UNDRAIN:
        steering.undrain(context, Undrain(host=text or context.host, reason=REASON))
        return text or context.host, "in effect"
    if name == DRAIN:
        drained = steering.drain(context, Drain(host=text or context.host, reason=REASON))
        return drained.host.id, "in effect" if drained.is_in_effect else "asked for"
    with context.registry.reading() as tx:
        job_id = text or _meant(tx, name=name)
    if name == PAUSE_AFTER:
        steering.drain(context, Drain(host=context.host, after_job_id=job_id, reason=REASON))
        return job_id, "asked for"
    commanded = steering.command(context, JobCommand(job_id=job_id, reason=REASON), what=Command(name))
    return job_id, "in effect" if commanded.is_in_effect else "asked for"


def _meant(tx: Transaction, *, name: str) -> str:
    if name == Command.RESUME:
        found = tx.find(TrainingJob, state=JobState.PAUSED, newest_first="started_at", limit=1)
    elif name == Command.RETRY:
        found = tx.find(TrainingJob, state=JobState.FAILED, newest_first="finished_at", limit=1)
    else:
        found = queue.running(tx)
    if not found:
        raise NotFound(
            f"There is no job that {name} could mean.", remedy=f"Write a job's id into control/{name}."
        )
    return found[0].id
