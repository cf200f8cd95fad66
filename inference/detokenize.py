"""Turn tokens into text as they come: whole characters only, and never past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"


class ReplyText:
    """The text of one reply. What `add` and `finish` return, joined, is the text of the whole reply.

    A token may hold part of a character, and part of a stop string; both are held back until it is clear
    what they become. Each token is decoded within a window of its predecessors, so that cost does not grow
    with the reply.
    """

    def __init__(self, tokenizer: Any, *, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._token_ids: list[int] = []
        self._window_start = 0
        self._num_read = 0
        self._held = ""
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """Take a token; return the text that is certain because of it, often empty."""
        self._token_ids.append(token_id)
        known = self._decode(self._token_ids[self._window_start : self._num_read])
        text = self._decode(self._token_ids[self._window_start :])
        if len(text) <= len(known) or text.endswith(UNFINISHED):
            return ""
        self._window_start, self._num_read = self._num_read, len(self._token_ids)
        return self._release(text[len(known) :])

    def finish(self) -> str:
        """The text still held back when no token follows."""
        if self.is_stopped:
            return ""
        known = self._decode(self._token_ids[self._window_start : self._num_read])
        text = self._decode(self._token_ids[self._window_start :])
        self._window_start, self._num_read = self._num_read, len(self._token_ids)
        released = self._release(text[len(known) :])
        rest, self._held = self._held, ""
        return released + rest

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        num_held = _length_of_begun_stop(text, stop=self._stop)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return decode(self._tokenizer, token_ids)


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of tokens, special ones visible: a reply with a stray one is not the expected reply."""
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def _length_of_begun_stop(text: str, *, stop: Sequence[str]) -> int:
    longest = max(map(len, stop), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(candidate.startswith(text[-length:]) for candidate in stop):
            return length
    return 0
