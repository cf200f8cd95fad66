"""The registry: transactions over the records, on SQLite (WAL) or PostgreSQL.

A transaction is short: no model, network or file work runs inside one. Writers take one lock when they
begin, on both databases, so that what a transaction read is still so when it writes: no deadlock and no
half-done compare-and-set. Readers see one moment and never wait for writers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from registry import lean, statements
from registry.engines import IS_DURABLE, READ_ONLY, explain, moment, open_engine
from registry.errors import IllegalTransition, NotFound, RegistryUnavailable, StaleWrite, ValueRefused
from registry.records import Event, Lease, Record
from registry.states import State, check_transition
from registry.tables import TABLES, events

R = TypeVar("R", bound=Record)
Clock = Callable[[], datetime]

BUSY_TIMEOUT_MS = 15_000


def utc_now() -> datetime:
    """The real clock."""
    return datetime.now(UTC)


class Registry:
    """Opens transactions. Safe to share between threads; each process opens its own."""

    def __init__(self, url: str, *, clock: Clock = utc_now, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> None:
        self.clock = clock
        self._engine = open_engine(url, busy_timeout_ms=busy_timeout_ms)
        is_file = self._engine.url.get_backend_name() == "sqlite"
        self._file = Path(self._engine.url.database or "") if is_file else None

    def __repr__(self) -> str:
        return f"Registry({self._engine.url.render_as_string(hide_password=True)})"

    @property
    def engine(self) -> Engine:
        """For migrations and tests."""
        return self._engine

    @property
    def exists(self) -> bool:
        """False where SQLite would have to make the file."""
        return self._file is None or self._file.exists()

    @contextmanager
    def transaction(self, *, is_durable: bool = True) -> Iterator[Transaction]:
        """Read and write; all of it is saved, or none.

        Without `is_durable` a power cut of the host may take it back on SQLite, with every process that knew
        of it; a killed process never does. PostgreSQL, whose workers may be elsewhere, makes it durable too.
        """
        with self._begin(**{READ_ONLY: False, IS_DURABLE: is_durable}) as connection:
            yield Transaction(connection, now=self.clock())

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A consistent view for reading; never waits for a writer, and never makes a database."""
        if not self.exists:
            raise RegistryUnavailable(
                f"There is no registry yet: {self._engine.url.database} does not exist.",
                remedy="`tandem up` makes it; TANDEM_HOME names another home.",
            )
        with self._begin(**{READ_ONLY: True}) as connection:
            yield Transaction(connection, now=self.clock())

    @contextmanager
    def _begin(self, **options: bool) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(**options)
                with connection.begin():
                    yield connection
        except (UnicodeEncodeError, OverflowError) as error:  # from the driver, which does not say so itself
            raise ValueRefused(f"The registry {self!r} cannot keep a value: {error}.") from error
        except (StatementError, PoolTimeout) as error:
            raise explain(error, where=repr(self)) from error


class Transaction:
    """One unit of work. `now` is the same throughout."""

    def __init__(self, connection: Connection, *, now: datetime) -> None:
        self.connection = connection
        self.now = now

    def moment(self) -> Hashable:
        """Asked for before this transaction writes, it equals that of an earlier one only where nothing was
        written since: what was read then still holds."""
        return moment(self.connection)

    def add(self, record: Record, *, actor: str, reason: str = "") -> None:
        """Insert a record and its first event; `StaleWrite` where its id exists already."""
        self.insert(record)
        self.log(
            kind=type(record).__name__,
            subject_id=str(getattr(record, "id", "")),
            before=None,
            after=str(getattr(record, "state", "added")),
            actor=actor,
            reason=reason,
        )

    def insert(self, record: Record) -> None:
        """Insert a record of which nobody wants to read in the event log."""
        table = TABLES[type(record)]
        try:
            lean.add(self.connection, statements.insert_into(table), [_row(record, table=table)])
        except IntegrityError as error:
            raise StaleWrite(f"{type(record).__name__} cannot be added: {error.orig}.") from error

    def get(self, kind: type[R], record_id: str) -> R:
        """The record; `NotFound` with a remedy where no row bears the id."""
        found = self.seek(kind, record_id)
        if found is None:
            raise NotFound(
                f"There is no {kind.__name__} {record_id!r}.", remedy="`tandem status` lists what there is."
            )
        return found

    def seek(self, kind: type[R], record_id: str, *, for_update: bool = False) -> R | None:
        """The record, or None. `for_update` locks the row on PostgreSQL; SQLite's writer has the lock."""
        query = statements.by_id(TABLES[kind], for_update=for_update)
        found = self.rows(query, {"id": record_id})
        return kind.model_validate(found[0]) if found else None

    def find(
        self,
        kind: type[R],
        /,
        *,
        newest_first: str = "",
        order_by: str = "id",
        limit: int | None = None,
        offset: int = 0,
        **equals: Any,
    ) -> list[R]:
        """Records whose fields equal these values (a list means any of them), in order or newest first."""
        values = {
            name: list(value) if isinstance(value, list | tuple | set | frozenset) else value
            for name, value in equals.items()
        }
        query = statements.matching(
            TABLES[kind],
            names=tuple((name, isinstance(value, list)) for name, value in values.items()),
            order=newest_first or order_by,
            is_newest_first=bool(newest_first),
            is_limited=limit is not None,
        )
        page = {} if limit is None else {statements.LIMIT: limit, statements.OFFSET: offset}
        return [kind.model_validate(row) for row in self.rows(query, values | page)]

    def rows(self, question: lean.Question, values: Mapping[str, Any] | None = None) -> list[lean.Row]:
        """What a question of more than one kind of record finds, by the names of its columns."""
        return lean.rows(self.connection, question, values or {})

    def update(self, record: R, **changes: Any) -> R:
        """Replace fields that are no state; validated, no event."""
        after = record.changed(**changes)
        table = TABLES[type(record)]
        statement = statements.update_of(table, names=tuple(changes), is_guarded=False)
        lean.change(self.connection, statement, _changed(after, table=table, names=tuple(changes)))
        return after

    def transition(
        self,
        record: R,
        *,
        to: State,
        actor: str,
        reason: str = "",
        lease: Lease | None = None,
        **changes: Any,
    ) -> R:
        """Compare-and-set the state, with other fields, and log who did it and why.

        `record` is what the caller saw. `StaleWrite` where the row moved on since, or where `lease` is
        no longer the caller's; `IllegalTransition` where the table has no such step.
        """
        before = _state_of(record)
        check_transition(before, after=to)
        if lease is not None:
            self.check_lease(lease)
        after = record.changed(state=to, **changes)
        table = TABLES[type(record)]
        names = ("state", *changes)
        statement = statements.update_of(table, names=names, is_guarded=True)
        values = _changed(after, table=table, names=names) | {statements.STATE: str(before)}
        subject = values[statements.ID]
        if lean.change(self.connection, statement, values) == 0:
            raise StaleWrite(f"{subject} is no longer {before}: it moved on.")
        kind = type(record).__name__
        self.log(kind=kind, subject_id=subject, before=before, after=to, actor=actor, reason=reason)
        return after

    def check_lease(self, lease: Lease) -> None:
        """`StaleWrite` unless this holder's token is still the newest and has not expired."""
        held = self.seek(Lease, lease.id, for_update=True)
        if held is None or held.token != lease.token or held.is_expired(now=self.now):
            raise StaleWrite(f"{lease.holder} no longer holds {lease.id} (token {lease.token}).")

    def log(
        self,
        *,
        kind: str,
        subject_id: str,
        before: str | None,
        after: str,
        actor: str,
        reason: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Append to the event log."""
        entry = self._event(
            kind=kind,
            subject_id=subject_id,
            before=before,
            after=after,
            actor=actor,
            reason=reason,
            data=data,
        )
        lean.add(self.connection, statements.insert_into(events), [entry])

    def log_steps(
        self, record: Record, *, steps: Sequence[tuple[State | None, State, str]], actor: str
    ) -> None:
        """Append several steps of one record at once: before, after, reason. Each must be legal."""
        for before, after, _reason in steps:
            if before is not None:
                check_transition(before, after=after)
        kind, subject_id = type(record).__name__, str(getattr(record, "id", ""))
        entries = [
            self._event(
                kind=kind, subject_id=subject_id, before=before, after=after, actor=actor, reason=reason
            )
            for before, after, reason in steps
        ]
        lean.add(self.connection, statements.insert_into(events), entries)

    def _event(
        self,
        *,
        kind: str,
        subject_id: str,
        before: str | None,
        after: str,
        actor: str,
        reason: str,
        data: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        entry = Event(
            at=self.now,
            actor=actor,
            kind=kind,
            subject_id=subject_id,
            before=None if before is None else str(before),
            after=str(after),
            reason=reason,
            data=dict(data or {}),
        )
        values = _row(entry, table=events)
        values.pop("id")
        return values


def _state_of(record: Record) -> State:
    state = getattr(record, "state", None)
    if state is None:
        raise IllegalTransition(f"{type(record).__name__} has no states.")
    known: State = state
    return known


def _changed(record: Record, *, table: Table, names: tuple[str, ...]) -> dict[str, Any]:
    values = _row(record, table=table, names=("id", *names))
    return {statements.ID: values["id"], **{statements.NEW + name: values[name] for name in names}}


def _row(record: Record, *, table: Table, names: Sequence[str] | None = None) -> dict[str, Any]:
    wanted = table.columns.keys() if names is None else names
    nested = set(statements.json_columns(table).intersection(wanted))
    as_json = record.model_dump(mode="json", include=nested) if nested else {}
    return {name: as_json[name] if name in nested else _scalar(getattr(record, name)) for name in wanted}


def _scalar(value: Any) -> Any:
    # PostgreSQL keeps no NUL in a text; the last words of a process that was killed may hold one.
    return str(value).replace("\0", "\ufffd") if isinstance(value, str) else value
