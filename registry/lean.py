"""Runs a statement by the driver itself: compiled once, with what converts its values.

Through SQLAlchemy each execution of the same statement costs several times as much. It is meant for what
every job asks; the rest need not know of it. Errors are SQLAlchemy's, and so are types, connection and
transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError, StatementError

Question = Select[Any] | CompoundSelect[Any]
Statement = Question | Insert | Update
Row = dict[str, Any]
Values = Mapping[str, Any]
Convert = Callable[[Any], Any]

SIZE = 2048  # statements, of all databases that a process opens


def rows(connection: Connection, question: Question, values: Values) -> list[Row]:
    """What the database answers, by the names of the columns."""
    plan = _plan(question, connection.dialect, ())
    if plan.is_expanding:  # a list becomes as many values as it has
        return [dict(row) for row in connection.execute(question, dict(values)).mappings()]
    cursor = _run(connection, sql=plan.sql, parameters=plan.parameters(values))
    columns = plan.columns_of(cursor.description)
    return [
        {
            name: value if convert is None else convert(value)
            for (name, convert), value in zip(columns, row, strict=True)
        }
        for row in cursor.fetchall()
    ]


def change(connection: Connection, statement: Update, values: Values) -> int:
    """How many rows were changed."""
    plan = _plan(statement, connection.dialect, ())
    return int(_run(connection, sql=plan.sql, parameters=plan.parameters(values)).rowcount)


def add(connection: Connection, statement: Insert, entries: Sequence[Values]) -> None:
    """Insert rows, all of the same columns."""
    plan = _plan(statement, connection.dialect, tuple(entries[0]))
    for entry in entries:
        _run(connection, sql=plan.sql, parameters=plan.parameters(entry))


def say(connection: Connection, sql: str) -> Any:
    """Something that takes no values, such as BEGIN; the driver's cursor."""
    return _run(connection, sql=sql, parameters=())


@dataclass
class _Plan:
    """A statement of one dialect. What converts its answer is known once there is one."""

    sql: str
    dialect: Dialect
    order: Sequence[str] | None
    fixed: Row
    binders: dict[str, Convert]
    selected: Sequence[tuple[str, Any]]
    is_expanding: bool
    columns: Sequence[tuple[str, Convert | None]] = field(default=())

    def parameters(self, values: Values) -> Any:
        """As the driver takes them: in order, or by name."""
        bound = {**self.fixed, **values}
        try:
            for name, convert in self.binders.items():
                bound[name] = convert(bound[name])
        except (TypeError, ValueError) as error:
            raise StatementError(str(error), self.sql, None, error) from error
        return bound if self.order is None else [bound[name] for name in self.order]

    def columns_of(self, description: Sequence[Sequence[Any]]) -> Sequence[tuple[str, Convert | None]]:
        """The name of each column, and what converts it where the driver does not."""
        if not self.columns:
            self.columns = [
                (name, kind.dialect_impl(self.dialect).result_processor(self.dialect, told[1]))
                for (name, kind), told in zip(self.selected, description, strict=True)
            ]
        return self.columns


@lru_cache(SIZE)
def _plan(statement: Statement, dialect: Dialect, names: tuple[str, ...]) -> _Plan:
    compiled = statement.compile(dialect=dialect, column_keys=names or None)
    converters = {
        name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in compiled.binds.items()
    }
    selected = statement.selected_columns.items() if isinstance(statement, Select | CompoundSelect) else ()
    return _Plan(
        sql=compiled.string,
        dialect=dialect,
        order=compiled.positiontup,
        fixed={name: bind.value for name, bind in compiled.binds.items() if not bind.required},
        binders={name: convert for name, convert in converters.items() if convert is not None},
        selected=[(key, column.type) for key, column in selected],
        is_expanding=any(bind.expanding for bind in compiled.binds.values()),
    )


def _run(connection: Connection, *, sql: str, parameters: Any) -> Any:
    driver: Any = connection.connection.dbapi_connection
    kind = connection.dialect.loaded_dbapi.Error
    try:
        return driver.execute(sql, parameters)  # both drivers have it, though their standard does not
    except kind as error:
        is_lost = connection.dialect.is_disconnect(error, driver, None)
        if is_lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            sql, None, error, kind, connection_invalidated=is_lost, dialect=connection.dialect
        ) from error
