"""The store's SQL: each statement is built once, since building one costs more than running it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, Insert, Select, Table, Update, bindparam, insert, select, update

LIMIT, OFFSET = "page_limit", "page_offset"
ID, STATE, NEW = "old_id", "old_state", "new_"
SIZE = 512  # far more than there are kinds of question


@lru_cache(SIZE)
def insert_into(table: Table) -> Insert:
    """Values by the names of the columns."""
    return insert(table).inline()


@lru_cache(SIZE)
def by_id(table: Table, *, for_update: bool) -> Select[Any]:
    """Takes `id`. `for_update` locks the row on PostgreSQL."""
    query = select(table).where(table.c.id == bindparam("id"))
    return query.with_for_update() if for_update else query


@lru_cache(SIZE)
def matching(
    table: Table, *, names: tuple[tuple[str, bool], ...], order: str, is_newest_first: bool, is_limited: bool
) -> Select[Any]:
    """Takes a value for each name, or a list where its flag is set; LIMIT and OFFSET where limited."""
    query = select(table)
    for name, is_list in names:
        column, value = table.c[name], bindparam(name, expanding=is_list, type_=table.c[name].type)
        query = query.where(column.in_(value) if is_list else column == value)
    first = table.c[order].desc() if is_newest_first else table.c[order]
    query = query.order_by(first, table.c.id)
    return query.limit(bindparam(LIMIT)).offset(bindparam(OFFSET)) if is_limited else query


@lru_cache(SIZE)
def update_of(table: Table, *, names: tuple[str, ...], is_guarded: bool) -> Update:
    """Takes ID, STATE where guarded, and NEW + name for each name."""
    query = update(table).where(table.c.id == bindparam(ID))
    if is_guarded:
        query = query.where(table.c.state == bindparam(STATE))
    return query.values({name: bindparam(NEW + name, type_=table.c[name].type) for name in names})


@lru_cache(SIZE)
def json_columns(table: Table) -> frozenset[str]:
    """Which columns hold nested values."""
    return frozenset(column.name for column in table.columns if isinstance(column.type, JSON))
