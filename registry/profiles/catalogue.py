"""Finds a profile by its name: tandem's own, and those that installed packages bring.

A package brings one by naming a subclass of `Profile` in its entry-point group `tandem.profiles`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from registry.errors import ProfileError
from registry.profiles.base import Profile
from registry.profiles.emoji_think import EmojiThink
from registry.profiles.plain_sft import PlainSft
from registry.profiles.regime3 import Regime3

GROUP = "tandem.profiles"
PLAIN = PlainSft()
OWN: dict[str, type[Profile]] = {kind.name: kind for kind in (PlainSft, EmojiThink, Regime3)}


def find_profile(name: str, *, brought: Iterable[EntryPoint] | None = None) -> Profile:
    """The profile of that name; `ProfileError` where there is none or its package does not work.

    `brought` are the entry points of installed packages. Tandem's own names cannot be taken by them.
    """
    if name in OWN:
        return OWN[name]()
    points = {point.name: point for point in (entry_points(group=GROUP) if brought is None else brought)}
    if name in points:
        return _load(points[name])
    known = sorted({*OWN, *points})
    close = difflib.get_close_matches(name, known, n=1)
    raise ProfileError(
        f"There is no profile {name[:60]!r}.",
        remedy=(f"Did you mean {close[0]}? " if close else "") + f"Known are {', '.join(known)}.",
    )


def version_of(name: str, *, brought: Iterable[EntryPoint] | None = None) -> str:
    """Of the package that brings a profile; empty for tandem's own, and where the package does not say."""
    if name in OWN:
        return ""
    points = entry_points(group=GROUP) if brought is None else brought
    return next((point.dist.version for point in points if point.name == name and point.dist), "")


def _load(point: EntryPoint) -> Profile:
    try:
        kind = point.load()
        profile = kind()
    except Exception as error:  # whatever a stranger's module raises
        raise ProfileError(
            f"Profile {point.name} ({point.value}) cannot be loaded: {type(error).__name__}: {error}.",
            remedy="Mend or remove the package that brings it.",
        ) from error
    if not isinstance(profile, Profile) or getattr(profile, "name", None) != point.name:
        raise ProfileError(
            f"{point.value} is no profile named {point.name}.",
            remedy="It must be a subclass of registry.profiles.base.Profile, `name` that of its entry point.",
        )
    return profile
