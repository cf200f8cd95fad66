"""Times as a person writes them on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from workers.errors import RequestError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
RELATIVE = re.compile(r"\+(\d{1,6})([smhd])")


def parse_time(text: str, *, now: datetime) -> datetime:
    """`+90m` from now, or an ISO time, local where it names no zone; aware UTC."""
    relative = RELATIVE.fullmatch(text)
    if relative is not None:
        return now + timedelta(**{UNITS[relative[2]]: int(relative[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RequestError(
            f"--at {text!r} is no time.", remedy="Write 2027-01-31T03:00 (local time), or +90m, +2h, +1d."
        ) from None
