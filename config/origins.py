"""Says which source each setting comes from: the first of them that names it wins."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from config.settings import CONFIG_FILE, PREFIX


class Origin(StrEnum):
    """Where a setting's value comes from, strongest first. A job's own values stand above all of them."""

    ENVIRONMENT = "environment"
    """A variable of the process."""
    DOTENV = ".env"
    """A line of `.env` in the directory where tandem runs."""
    FILE = CONFIG_FILE
    """A key of `tandem.toml` there."""
    DEFAULT = "default"
    """Nobody said anything."""


def origin_of(variable: str) -> Origin:
    """The strongest source that names a setting, given by its environment variable."""
    names = {variable, *_parents(variable)}
    if _is_named(names, variable=variable, among=os.environ):
        return Origin.ENVIRONMENT
    if _is_named(names, variable=variable, among=dotenv_values(".env")):
        return Origin.DOTENV
    return Origin.FILE if _is_in_file(variable) else Origin.DEFAULT


def _parents(variable: str) -> list[str]:
    """A section given whole, as JSON, names what is in it too."""
    parts = variable.removeprefix(PREFIX).split("__")
    return [PREFIX + "__".join(parts[:count]) for count in range(1, len(parts))]


def _is_named(names: set[str], *, variable: str, among: Mapping[str, Any]) -> bool:
    return any(name.upper() in names or name.upper().startswith(f"{variable}__") for name in among)


def _is_in_file(variable: str) -> bool:
    try:
        value: Any = tomllib.loads(Path(CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    for part in variable.removeprefix(PREFIX).lower().split("__"):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
