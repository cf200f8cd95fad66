"""Training rows that give away what a suite asks: the whole question, or a long run of its words.

After the appendix C of Brown et al. 2020 (GPT-3): a run of 13 words of a suite row that stands in a training
row counts, unless it is a common phrase. Common is what two suite rows share, or more than ten different
training rows: the wording of a task, which says nothing of one row. A suite row of fewer words is compared as
a whole question only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from registry.records import Record
from registry.rows import ChatRow

_EDGES = ".,;:!?\"'()[]{}`“”‘’"
Words = tuple[str, ...]


class ContaminationLimits(Record):
    """How much of a suite row training data may hold."""

    num_words: int = Field(default=13, ge=4, description="in a row, that two texts share by no accident")
    max_overlap: float = Field(default=0.0, ge=0, le=1, description="share of a suite row's runs; 0 is none")
    max_common_rows: int = Field(default=10, ge=1, description="training rows; more share a common phrase")


@dataclass(frozen=True)
class Overlap:
    """A training row (numbers begin at 1) and what it shares with a suite row."""

    row_number: int
    suite_row_id: str
    shared: str
    is_whole_question: bool

    def __str__(self) -> str:
        what = "the whole question" if self.is_whole_question else "the words"
        return f"row {self.row_number} ({what} {self.shared[:80]!r})"


def find_overlaps(
    rows: Iterable[ChatRow], *, suite: Sequence[ChatRow], limits: ContaminationLimits
) -> list[Overlap]:
    """Each training row that shares too much with a suite row, once, by its number."""
    asked = {question(row): row for row in suite}
    runs = _own_runs(suite, num_words=limits.num_words)
    whole: list[Overlap] = []
    found: dict[int, set[Words]] = {}
    holders: dict[Words, set[int]] = defaultdict(set)
    for number, row in enumerate(rows, start=1):
        if (match := asked.get(question(row))) is not None:
            whole.append(Overlap(number, match.content_id, row.prompt[-1].content, is_whole_question=True))
        elif shared := {run for run in _runs(row, num_words=limits.num_words) if run in runs}:
            found[number] = shared
            for run in shared:
                holders[run].add(hash(row.messages))
    rare = {run for run, texts in holders.items() if len(texts) <= limits.max_common_rows}
    partial = _partial(found, rare=rare, runs=runs, limits=limits)
    return sorted([*whole, *partial], key=lambda overlap: overlap.row_number)


def question(row: ChatRow) -> tuple[tuple[str, str], ...]:
    """What identifies a question: every turn before the answer."""
    return tuple((message.role, message.content.strip()) for message in row.prompt)


def _own_runs(suite: Sequence[ChatRow], *, num_words: int) -> dict[Words, str]:
    """Runs of words that one suite row alone has, with its id."""
    by_row = {row.content_id: set(_runs(row, num_words=num_words)) for row in suite}
    counts = Counter(run for runs in by_row.values() for run in runs)
    return {run: row_id for row_id, runs in by_row.items() for run in runs if counts[run] == 1}


def _partial(
    found: dict[int, set[Words]], *, rare: set[Words], runs: dict[Words, str], limits: ContaminationLimits
) -> Iterator[Overlap]:
    num_runs = Counter(runs.values())
    for number, shared in found.items():
        counts = Counter(runs[run] for run in shared & rare)
        for row_id, count in counts.most_common(1):
            if count > limits.max_overlap * num_runs[row_id]:
                first = min(run for run in shared & rare if runs[run] == row_id)
                yield Overlap(number, row_id, " ".join(first), is_whole_question=False)


def _runs(row: ChatRow, *, num_words: int) -> Iterator[Words]:
    """Of the user's and the assistant's words; a system prompt is the same for many rows."""
    words = [word for turn in row.messages if turn.role != "system" for word in _words(turn.content)]
    for start in range(len(words) - num_words + 1):
        yield tuple(words[start : start + num_words])


def _words(text: str) -> Iterator[str]:
    """Lower case, without punctuation at their edges; a sign that stands alone, such as +, is a word."""
    for piece in text.lower().split():
        if word := piece.strip(_EDGES):
            yield word
