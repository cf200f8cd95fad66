"""Writes rows of any accepted form as JSONL of messages; the file is whole or absent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from registry.errors import DatasetError, ProfileError
from registry.files import write_atomically
from registry.profiles.base import Profile, wrap_row
from registry.records import Record
from registry.row_formats import recognise
from registry.rows import ChatRow, numbered_lines, parse_row


class ConversionReport(Record):
    """What became of the rows. `problems` says of each row that was left out why."""

    num_rows: int
    num_left_out: int
    num_by_format: dict[str, int]
    problems: tuple[str, ...]


def convert(path: Path, *, target: Path, profile: Profile | None, drops_bad: bool) -> ConversionReport:
    """Convert a file; `DatasetError` at the first unusable row unless `drops_bad`, or if `target` exists."""
    _refuse_existing(target)
    lines, problems, kinds = [], [], Counter[str]()
    for source, text in _entries(path):
        try:
            row = _fitting(parse_row(text, source=source), source=source, profile=profile)
        except DatasetError as error:
            if not drops_bad:
                raise
            problems.append(str(error))
            continue
        kinds[recognise(json.loads(text), source=source)] += 1
        lines.append(_line(row))
    if not lines:
        raise DatasetError(
            f"{path}: no row is left{f': {problems[0]}' if problems else ', the file has none'}."
        )
    try:
        write_atomically(target, content="".join(lines).encode())
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error.strerror}.") from None
    return ConversionReport(
        num_rows=len(lines),
        num_left_out=len(problems),
        num_by_format={str(form): count for form, count in kinds.items()},
        problems=tuple(problems),
    )


def _refuse_existing(target: Path) -> None:
    try:
        is_there = target.exists()
    except (OSError, ValueError) as error:  # a name that is too long
        raise DatasetError(f"{str(target)[:80]!r} cannot be a file: {error}.") from None
    if is_there:
        raise DatasetError(f"{target} exists already.", remedy="Name another file, or remove it.")


def _fitting(row: ChatRow, *, source: str, profile: Profile | None) -> ChatRow:
    try:
        if profile is not None:
            wrap_row(profile, row)
    except ProfileError as error:
        raise DatasetError(f"{source}: not for profile: {error.message}") from None
    return row


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """Each row's place and text: the lines of a JSONL file, or the entries of a JSON array."""
    if path.suffix == ".json" and (array := _array(path)) is not None:
        for number, value in enumerate(array, start=1):
            yield f"{path.name}, entry {number}", json.dumps(value)
        return
    for number, line in numbered_lines(path):
        if line.strip():
            yield f"{path.name}, line {number}", line


def _array(path: Path) -> list[object] | None:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.", remedy="Check the path.") from None
    except (ValueError, RecursionError):
        return None  # perhaps JSONL under another name: its lines say what is wrong
    return value if isinstance(value, list) else None


def _line(row: ChatRow) -> str:
    fields = row.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(fields, ensure_ascii=False) + "\n"
