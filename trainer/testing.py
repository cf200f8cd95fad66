"""Fakes of this room's seams, for tests of trainer and of what stands on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from trainer.control import Request

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class FakeClock:
    """Goes on by `seconds_per_reading` with each monotonic reading."""

    def __init__(self, *, seconds_per_reading: float = 1.0) -> None:
        self._seconds_per_reading = seconds_per_reading
        self._elapsed = 0.0

    def monotonic(self) -> float:
        """Seconds since the first reading."""
        self._elapsed += self._seconds_per_reading
        return self._elapsed

    def now(self) -> datetime:
        """Noon of the first of January 2026, and what has elapsed since."""
        return NOON + timedelta(seconds=self._elapsed)


class ScriptedControl:
    """Requests something once it was asked `after_steps` times."""

    def __init__(self, *, request: Request = "stop", after_steps: int) -> None:
        self._request = request
        self._remaining = after_steps

    @property
    def request(self) -> Request | None:
        """None for the first `after_steps` readings."""
        self._remaining -= 1
        return self._request if self._remaining < 0 else None
