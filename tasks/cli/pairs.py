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
        parsed[name] = _parsed(value, name=name)
    return parsed


def _parsed(text: str, *, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else "it has too many digits"
        raise RequestError(
            f"--set {name}: its value of {len(text)} characters cannot be read: {reason}.",
            remedy="For example --set num_epochs=2.",
        ) from None
