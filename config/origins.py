"""Says which source each setting comes from: the first of them that names it wins."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from config.sources import CONFIG_FILE, DOTENV_FILE, PREFIX, read_dotenv, setting_at


class Origin(StrEnum):
    """Where a setting's value comes from, strongest first. A job's own values stand above all of them."""

    ENVIRONMENT = "environment"
    """A variable of the process."""
    DOTENV = DOTENV_FILE
    """A line of `.env` in the directory where tandem runs."""
    FILE = CONFIG_FILE
    """A key of `tandem.toml` there."""
    DEFAULT = "default"
    """Nobody said anything."""


def origin_of(variable: str) -> Origin:
    """The strongest source that names a setting, given by its environment variable."""
    path = setting_at(variable).split(".")
    if _is_named(path, among=os.environ):
        return Origin.ENVIRONMENT
    if _is_named(path, among=read_dotenv()):
        return Origin.DOTENV
    return Origin.FILE if _holds(_file(), path=path) else Origin.DEFAULT


def _is_named(path: Sequence[str], *, among: Mapping[str, str | None]) -> bool:
    ours = {name: value for name, value in among.items() if name.upper().startswith(PREFIX)}
    return any(_names(name, value=value, path=path) for name, value in ours.items() if value is not None)


def _names(variable: str, *, value: str, path: Sequence[str]) -> bool:
    """A variable names a setting itself, something below it, or, as JSON, a section that it stands in."""
    own = setting_at(variable).split(".")
    if own[: len(path)] == path:
        return True
    return own == path[: len(own)] and _holds(_parsed(value), path=path[len(own) :])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _file() -> Any:
    try:
        return tomllib.loads(Path(CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _holds(value: Any, *, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
