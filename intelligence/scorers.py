"""The scorers: who says whether a reply answers its row. A suite or a row names one.

More come from installed packages, by entry point: a function of (reply, `expected`, `options`) in the group
`tandem.scorers`, where the name is what a row writes. A name of ours cannot be taken.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

from intelligence import answers
from intelligence.answers import Options
from intelligence.errors import UnknownScorer
from registry.judging import DEFAULT_SCORER, Judge, Judgement, same_text
from registry.records import ExampleResult
from registry.rows import ChatRow

GROUP = "tandem.scorers"


class Scorer(Protocol):
    """Whether a reply is correct. What it raises makes the example unknown, with what it said."""

    def __call__(self, answer: str, *, expected: str, options: Options) -> bool:
        """The reply, the expected answer and the row's `scoring`."""


def judge(row: ChatRow, answer: str) -> Judgement:
    """By the row's scorer. Nothing is correct without an expected answer or without a reply."""
    name = row.scorer or DEFAULT_SCORER
    if not row.expected.strip():
        return Judgement(is_correct=False, problem="the row has no expected answer")
    if name == DEFAULT_SCORER or not answer.strip():
        return same_text(row, answer)
    try:
        is_correct = find(name)(answer, expected=row.expected, options=row.scoring)
    except Exception as error:  # noqa: BLE001 - anybody's function; one row must not cost the others
        problem = f"scorer {name!r} failed: {type(error).__name__}: {error}"
        return Judgement(is_correct=False, problem=problem[:300])
    if not isinstance(is_correct, bool):
        problem = f"scorer {name!r} said {str(is_correct)[:60]!r}, which is neither true nor false"
        return Judgement(is_correct=False, problem=problem)
    return Judgement(is_correct=is_correct)


def find(name: str) -> Scorer:
    """The scorer of a name; `UnknownScorer` lists those there are."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name in found:
        loaded: Scorer = found[name].load()
        return loaded
    known = sorted({*BUILT_IN, *found})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise UnknownScorer(
        f"There is no scorer {name!r}.",
        remedy=f"{hint}There are {', '.join(known)}; a package adds one by an entry point in {GROUP}.",
    )


def rejudged(example: ExampleResult, *, row: ChatRow, by: Judge = judge) -> ExampleResult:
    """The example judged anew from its stored reply. What went wrong with the model stays wrong."""
    if example.loss is None or example.finish_reason != "stop":
        return example.changed(scorer=row.scorer or DEFAULT_SCORER)
    judgement = by(row, example.answer)
    return example.changed(
        is_correct=judgement.is_correct, problem=judgement.problem, scorer=row.scorer or DEFAULT_SCORER
    )


def _same_text(answer: str, *, expected: str, options: Options) -> bool:
    del options
    return bool(answer.strip()) and answer.strip() == expected.strip()


def _reasoning_gym(answer: str, *, expected: str, options: Options) -> bool:
    """The verifier of the `dataset`, given the entry's `metadata`; only a full score counts."""
    import reasoning_gym.factory  # an optional package that loads sympy: only whoever uses it pays

    name = str(options.get("dataset") or _metadata(options).get("source_dataset"))
    score: Callable[..., float] = reasoning_gym.factory.get_score_answer_fn(name)
    entry = {"question": options.get("question", ""), "answer": expected, "metadata": _metadata(options)}
    return float(score(answer=answer.strip(), entry=entry)) >= 1.0


def _metadata(options: Options) -> Mapping[str, Any]:
    metadata = options.get("metadata", {})
    return metadata if isinstance(metadata, Mapping) else {}


BUILT_IN: Mapping[str, Scorer] = {
    DEFAULT_SCORER: _same_text,
    "numeric": answers.same_number,
    "json": answers.same_json,
    "set": answers.same_set,
    "regime3": answers.same_form,
    "reasoning-gym": _reasoning_gym,
}
