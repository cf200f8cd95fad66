"""`--set name=value`, as several commands take it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from workers.errors import RequestError


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Values are JSON where they can be read as it, else the text itself."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise RequestError(f"--set {pair!r} is not name=value.", remedy="For example --set num_epochs=2.")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed
