"""What every section of a job is: a record whose texts and paths can be said and looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from registry.records import Record

NUL = "\0"


class Section(Record):
    """A part of a job. Its texts and paths hold neither NUL nor half of a surrogate pair."""

    @field_validator("*", mode="after")
    @classmethod
    def _sayable(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            _check_text(str(value))
        return value


def _check_text(text: str) -> None:
    if NUL in text:
        raise PydanticCustomError(
            "nul", "it holds a NUL character, which ends a name", {"remedy": "Remove the character."}
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "surrogate",
            "it holds half of a surrogate pair, which is no character",
            {"remedy": "Write it in UTF-8, with whole characters."},
        ) from None
