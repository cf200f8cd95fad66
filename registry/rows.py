"""Rows of training data and of validation suites: one reader, so that both sides see the same fields.

`registry/row_formats.py` says which forms are read. The last message is the assistant's: what is learnt or
expected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from registry.errors import DatasetError
from registry.files import sha256_text
from registry.row_formats import normalised
from registry.values import Record

MAX_LINE_BYTES = 4 << 20
DEFAULT_DIFFICULTY = "all"


class ChatMessage(Record):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRow(Record):
    """A conversation that ends with the assistant's turn."""

    messages: tuple[ChatMessage, ...] = Field(min_length=2)
    id: str = ""
    difficulty: str = DEFAULT_DIFFICULTY
    tags: tuple[str, ...] = ()
    cluster: str = Field(default="", description="rows that share something, such as a text, bear one name")
    scorer: str = Field(default="", description="who judges a reply; the exact text unless named")
    scoring: dict[str, JsonValue] = Field(default_factory=dict, description="options of the scorer")

    @property
    def prompt(self) -> tuple[ChatMessage, ...]:
        """Everything before the expected answer; never the answer itself."""
        return self.messages[:-1]

    @property
    def expected(self) -> str:
        """The last turn's text."""
        return self.messages[-1].content

    def answered_by(self, expected: str) -> ChatRow:
        """The same question with another expected answer."""
        if expected == self.expected:
            return self
        return self.model_copy(
            update={"messages": (*self.prompt, ChatMessage(role="assistant", content=expected))}
        )

    @property
    def content_id(self) -> str:
        """The row's own id, or the first 16 digits of the hash of its messages."""
        turns = [[message.role, message.content] for message in self.messages]
        return self.id or sha256_text(json.dumps(turns, ensure_ascii=False))[:16]


def read_rows(path: Path) -> Iterator[ChatRow]:
    """Rows of a JSONL file, in order; blank lines are passed over.

    Raises `DatasetError` naming file, line and reason at the first row that cannot be used, and
    where the file is missing, empty or not UTF-8.
    """
    num_rows = 0
    for number, line in numbered_lines(path):
        if line.strip():
            num_rows += 1
            yield parse_row(line, source=f"{path.name}, line {number}")
    if not num_rows:
        raise DatasetError(f"{path.name} has no rows.", remedy="Put one JSON object on each line.")


def parse_row(line: str, *, source: str) -> ChatRow:
    """One line as a row; `DatasetError` begins with `source`."""
    value = _json_value(line, source=source)
    if not isinstance(value, dict):
        raise DatasetError(f"{source}: a row is a JSON object, not {_json_kind(value)}.")
    try:
        row = ChatRow.model_validate(normalised(value, source=source))
    except ValidationError as error:
        raise DatasetError(f"{source}: {_first_problem(error)}.") from None
    _check_turns(row, source=source)
    return row


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers; `DatasetError` where it is missing, not UTF-8 or too wide."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check the path and its permissions."
        ) from None
    with stream:
        for number, raw in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 2), b""), start=1):
            if len(raw.rstrip(b"\r\n")) > MAX_LINE_BYTES:
                raise DatasetError(f"{path.name}, line {number}: longer than {MAX_LINE_BYTES} bytes.")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DatasetError(
                    f"{path.name}, line {number}: not UTF-8 (byte {error.start + 1}).",
                    remedy="Convert the file, for example with iconv -t UTF-8.",
                ) from None


def _json_value(line: str, *, source: str) -> Any:
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{source}: holds half of a surrogate pair, which is no character.") from None
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        raise DatasetError(f"{source}: not valid JSON ({error}).") from None
    return value


def _check_turns(row: ChatRow, *, source: str) -> None:
    if row.messages[-1].role != "assistant":
        raise DatasetError(
            f"{source}: the last message is the {row.messages[-1].role}'s; it must be the assistant's."
        )
    for index, message in enumerate(row.messages):
        if not message.content.strip():
            raise DatasetError(f"{source}: messages[{index}] ({message.role}) is empty.")
        if message.role == "system" and index:
            raise DatasetError(f"{source}: messages[{index}] is a system message; only the first may be.")
    if not any(message.role == "user" for message in row.messages):
        raise DatasetError(f"{source}: no message is the user's.")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "too_short":
        return f"messages: {problem['ctx']['actual_length']} turns; there must be a question and its answer"
    place = ""
    for part in problem["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return f"{place}: {problem['msg']} (found {str(problem.get('input'))[:60]!r})"


def _json_kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
