"""What a submission fixes of a job, and how the registry keeps it: one JSON object, every default included.

Hyperparameters stand in it by name; beside them `profile` and `overlong`, where they are not the plain ones.
That they are absent means `plain_sft` and `drop` for ever, whatever the defaults become.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from registry.errors import ProfileError
from registry.profiles.base import Profile
from registry.profiles.catalogue import PLAIN, find_profile
from registry.records import Record
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import Overlong, check_hyperparameters
from trainer.errors import ConfigError

PLAIN_OVERLONG: Overlong = "drop"


class Pinned(Record):
    """How a job learns, what its rows are rewritten by, and what becomes of rows that are too long."""

    hyperparameters: Hyperparameters
    profile: str = PLAIN.name
    overlong: Overlong = PLAIN_OVERLONG

    def as_json(self) -> dict[str, JsonValue]:
        """What the registry keeps."""
        plain = {"profile": PLAIN.name, "overlong": PLAIN_OVERLONG}
        chosen = {name: getattr(self, name) for name in plain if getattr(self, name) != plain[name]}
        return {**self.hyperparameters.as_json(), **chosen}


def read_pinned(values: Mapping[str, Any]) -> Pinned:
    """What `as_json` wrote; `ConfigError` where it is no longer understood."""
    rest = dict(values)
    extras = {name: rest.pop(name) for name in ("profile", "overlong") if name in rest}
    return Pinned(hyperparameters=check_hyperparameters(rest), **extras)


def profile_named(name: str) -> Profile:
    """A profile by its name; `ConfigError` where there is none."""
    try:
        return find_profile(name)
    except ProfileError as error:
        raise ConfigError(
            f"profile.name = {name!r}: {error.message}", field="profile.name", value=name, remedy=error.remedy
        ) from None
