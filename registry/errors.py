"""What can go wrong with records.

TandemError                 root of every room's errors; says what failed and how to mend it
└── RegistryError
    ├── NotFound            no row bears that id
    ├── StaleWrite          the row moved on, or the lease is another's: discard the result
    ├── IllegalTransition   the states do not allow that step
    ├── QueueFull           as many jobs wait there as may
    ├── DatasetError        a JSONL file that cannot be used, with line and reason
    ├── ProfileError        a profile that is not there, or a text that it has no form for
    ├── ManifestError       a directory that is not what its manifest says
    ├── ValueRefused        a value that no database keeps
    └── RegistryUnavailable the database cannot be reached or is locked
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with half characters spelt out: names of files may hold them, and no stream prints them."""
    return text.encode("utf-8", "backslashreplace").decode()


class TandemError(Exception):
    """An error a user can read: what failed, which value, and the remedy."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.remedy = printable(remedy)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class RegistryError(TandemError):
    """Root of this room."""


class NotFound(RegistryError):
    """No row bears that id."""


class StaleWrite(RegistryError):
    """The row moved on or the lease is another's. The writer discards its result."""


class IllegalTransition(RegistryError):
    """The transition table has no such step."""


class QueueFull(RegistryError):
    """As many jobs wait in that queue as may."""


class DatasetError(RegistryError):
    """A JSONL file that cannot be used."""


class ProfileError(RegistryError):
    """A profile that is not there or does not work, or a text that it has no form for."""


class ManifestError(RegistryError):
    """A directory whose manifest is missing, unreadable, or does not match its files."""


class ValueRefused(RegistryError):
    """A value that no database keeps: NaN, a text too long for its column. The same write never succeeds."""


class RegistryUnavailable(RegistryError):
    """The database cannot be reached or stays locked."""
