"""What a judge of answers is: a function of the row and the reply, and the judgement it gives."""

from __future__ import annotations

from collections.abc import Callable

from registry.rows import ChatRow
from registry.values import Record

DEFAULT_SCORER = "exact"


class Judgement(Record):
    """Whether a reply answers its row. With a `problem` nobody knows, and `is_correct` is False."""

    is_correct: bool
    problem: str = ""


Judge = Callable[[ChatRow, str], Judgement]


def same_text(row: ChatRow, answer: str) -> Judgement:
    """The expected text, whatever white space surrounds it. An empty answer is never correct."""
    return Judgement(is_correct=bool(answer.strip()) and answer.strip() == row.expected.strip())
