"""What to say of a name that is no setting: where it stands, else which one is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from config.sections import JOB_SECTIONS, NESTED, advice, new_places

# Before a name that is looked for at a new place; before any other, the section may be what is misspelt.
HOMES = ("", "training", "profile", *JOB_SECTIONS, *NESTED, *(f"training.{section}" for section in NESTED))


def setting_meant(path: str, *, known: Collection[str]) -> str:
    """The setting that somebody meant by an unknown dotted name; empty where nothing is near."""
    section, _, name = path.rpartition(".")
    others = [setting for setting in known if not path.startswith(f"{setting}.")]
    close = difflib.get_close_matches(path, others, n=1)
    if section not in HOMES and close and close[0].endswith(f".{name}"):
        return close[0]
    places = [place for place in new_places(path) if place in known]
    if places or job_advice(path):
        return places[0] if places else ""
    return close[0] if close else ""


def job_advice(path: str) -> str:
    """What to do about a name that only a job's own file has; else empty."""
    return advice(path) or advice(path.rpartition(".")[2])
