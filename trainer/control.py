"""What the outside may ask of a run while it trains."""

from __future__ import annotations

from typing import Literal, Protocol

Request = Literal["stop", "pause"]


class Control(Protocol):
    """Asked once a step. One property: the engine needs to know what is wanted, not who said so."""

    @property
    def request(self) -> Request | None:
        """What to do at the next step boundary; None to go on."""
        ...


class FlagControl:
    """A request set from another thread or a signal handler. The first one stays."""

    def __init__(self) -> None:
        self._request: Request | None = None

    @property
    def request(self) -> Request | None:
        """The first request that was made."""
        return self._request

    def ask(self, request: Request) -> None:
        """Request it; assignment is atomic, so no lock is needed."""
        self._request = self._request or request
