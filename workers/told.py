"""Tells of a standing trouble once, not at every look."""

from __future__ import annotations

import logging
from collections.abc import Hashable


class Told:
    """What a process has logged already, by what it is about."""

    def __init__(self) -> None:
        self._subjects: set[Hashable] = set()

    def __contains__(self, subject: Hashable) -> bool:
        return subject in self._subjects

    def once(self, subject: Hashable, *, log: logging.Logger, words: str) -> None:
        """Warn, unless that was done since this subject was in order last."""
        if subject not in self._subjects:
            self._subjects.add(subject)
            log.warning("%s", words)

    def is_over(self, subject: Hashable) -> None:
        """It is in order: should it come again, that is told again."""
        self._subjects.discard(subject)
