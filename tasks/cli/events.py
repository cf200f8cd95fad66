"""`tandem events`: who changed what, when and why, as a list or as a stream."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from registry import history
from registry.errors import RegistryUnavailable
from registry.history import EventCursor
from registry.records import Event
from registry.store import Registry, Transaction
from tasks.api import Tandem
from tasks.cli.output import error_console
from tasks.cli.stream import LineStream, lines
from tasks.cli.times import UNITS
from workers.errors import RequestError

NUM_SHOWN = 30
POLL_SECONDS = 0.5
AGO = re.compile(r"(\d{1,6})([smhd])")


@dataclass(frozen=True)
class Wanted:
    """Which events to show: of a job and its checkpoints, of one record, or of all."""

    subject: str | None = None
    job: str | None = None
    after_id: int | None = None
    since: datetime | None = None
    limit: int | None = None

    def subjects(self, tx: Transaction) -> list[str] | None:
        """Their ids at this moment: a running job makes checkpoints."""
        if self.job is not None:
            return history.subjects_of_job(tx, job_id=self.job)
        return None if self.subject is None else [self.subject]


def register(cli: typer.Typer) -> None:
    """Add this room's command."""
    cli.command("events")(events)


def events(
    subject: Annotated[str | None, typer.Argument(help="A job, checkpoint or release.")] = None,
    job: Annotated[str | None, typer.Option("--job", help="A job with its checkpoints.")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="90m, 2h or 1d ago; a time; or the id of the last event seen."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The newest so many: 30, or all with --since.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object of JSON a line.")] = False,
) -> None:
    """Who changed what, when and why; newest last."""
    if subject is not None and job is not None:
        raise RequestError("A subject and --job cannot both be meant.", remedy="Give one of them.")
    after_id, since_at = (None, None) if since is None else parse_since(since, now=datetime.now(UTC))
    if limit is None and since is None:
        limit = NUM_SHOWN
    wanted = Wanted(subject=subject, job=job, after_id=after_id, since=since_at, limit=limit)
    registry = Tandem().context.registry
    with lines() as stream:
        show = _Printer(stream, as_json=as_json)
        cursor = _print_past(registry, wanted=wanted, show=show)
        if follow:
            Follower(registry, wanted=wanted, show=show, check=stream.check_reader, cursor=cursor).run()


def parse_since(text: str, *, now: datetime) -> tuple[int | None, datetime | None]:
    """An event's id, or a time: `2h` is two hours ago; an ISO time is local where it names no zone."""
    if text.isdecimal() and len(text) <= 18:
        return int(text), None
    ago = AGO.fullmatch(text)
    try:
        if ago is not None:
            return None, now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        return None, datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RequestError(
            f"--since {text!r} is no time.", remedy="Write 90m, 2h, 1d, 2027-01-31T03:00, or an event's id."
        ) from None


@dataclass
class Follower:
    """Shows each event that comes, once. A registry that is away for a moment is asked again."""

    registry: Registry
    wanted: Wanted
    show: Callable[[Event], None]
    check: Callable[[], None]
    cursor: EventCursor
    sleep: Callable[[float], None] = time.sleep
    _is_away: bool = False

    def run(self) -> None:
        """Until Ctrl-C, or until nobody reads on."""
        while True:
            self.check()
            self.sleep(POLL_SECONDS)
            self.take()

    def take(self) -> None:
        """Show what is new."""
        try:
            with self.registry.reading() as tx:
                subjects = self.wanted.subjects(tx)
                found, self.cursor = history.next_events(tx, self.cursor, subjects=subjects)
        except RegistryUnavailable as error:
            if not self._is_away:
                error_console.print(f"tandem: {error.message} Asking again.", markup=False, highlight=False)
            self._is_away = True
            return
        self._is_away = False
        for event in found:
            self.show(event)


class _Printer:
    def __init__(self, stream: LineStream, *, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json

    def __call__(self, event: Event) -> None:
        if self._as_json:
            self._stream.write(json.dumps(event.model_dump(mode="json"), allow_nan=False, ensure_ascii=False))
            return
        step = f"{event.before or '–'} -> {event.after}"
        reason = " ".join(event.reason.split())
        self._stream.write(f"{event.at:%m-%d %H:%M:%S} {event.subject_id:28} {step:26} {reason}")


def _print_past(registry: Registry, *, wanted: Wanted, show: Callable[[Event], None]) -> EventCursor:
    """The events so far, and a cursor behind them: both from one view of the registry."""
    with registry.reading() as tx:
        found = history.newest_events(
            tx,
            subjects=wanted.subjects(tx),
            after_id=wanted.after_id,
            since=wanted.since,
            limit=wanted.limit,
        )
        cursor = history.end_of_events(tx)
    for event in found:
        show(event)
    return cursor
