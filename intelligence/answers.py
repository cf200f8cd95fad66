"""Compare a reply with the expected answer: numbers, JSON, sets, forms.

Each takes the reply, the expected answer and the row's options, and says whether the reply is correct. A
reply that cannot be read is wrong. An expected answer that cannot be read raises `UnreadableAnswer`: the row
is at fault, so nothing is known of the reply.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from intelligence.errors import UnreadableAnswer

Options = Mapping[str, Any]

ANSWER_START, ANSWER_END = "<<ANS_START>>", "<<ANS_END>>"
RELATIVE_TOLERANCE = 1e-6
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
)
# How models and data sets mark a final answer: GSM8K, LaTeX, ours. The last mark counts.
_MARKS = (
    re.compile(re.escape(ANSWER_START) + r"(.*?)" + re.escape(ANSWER_END), re.DOTALL),
    re.compile(r"####[ \t]*([^\n]+)"),
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"\banswer(?: is|:)[ \t]*([^\n]+)", re.IGNORECASE),
)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_TOKEN = re.compile(r"\(|\)|[^\s()]+")
MAX_DEPTH = 100

Form = str | tuple["Form", ...]


def same_number(answer: str, *, expected: str, options: Options) -> bool:
    """The marked number, else the last one in the reply, within `relative` or `absolute` tolerance.

    Thousands may be separated by commas. Without options the tolerance is 1e-6 of the expected number.
    """
    wanted, given = last_number(expected), last_number(answer)
    if wanted is None:
        raise UnreadableAnswer(f"The expected answer {expected[:60]!r} holds no number.")
    if given is None:
        return False
    relative = float(options.get("relative", RELATIVE_TOLERANCE))
    absolute = float(options.get("absolute", 0.0))
    return math.isclose(given, wanted, rel_tol=relative, abs_tol=absolute)


def last_number(text: str) -> float | None:
    """The number of the last marked answer, or the last number of a text without marks; None without one."""
    found = _NUMBER.findall(_marked(text).replace("\N{MINUS SIGN}", "-"))
    value = float(found[-1].replace(",", "")) if found else math.nan
    return value if math.isfinite(value) else None


def same_json(answer: str, *, expected: str, options: Options) -> bool:
    """The same JSON value, whatever the order of keys and the white space; `ignore_order` for lists too."""
    is_ordered = not options.get("ignore_order", False)
    try:
        wanted = _json(expected, is_ordered=is_ordered)
    except (ValueError, RecursionError) as error:
        raise UnreadableAnswer(f"The expected answer {expected[:60]!r} is not JSON: {error}.") from None
    try:
        return bool(_json(answer, is_ordered=is_ordered) == wanted)
    except (ValueError, RecursionError):
        return False


def same_set(answer: str, *, expected: str, options: Options) -> bool:
    """The same items, in any order and however often, parted by `separator`; else by commas and lines."""
    wanted = _items(expected, options=options)
    if not wanted:
        raise UnreadableAnswer(f"The expected answer {expected[:60]!r} names no items.")
    return _items(answer, options=options) == wanted


def same_form(answer: str, *, expected: str, options: Options) -> bool:
    """The same `(op arg1 arg2)` form, whatever the white space, between the answer marks.

    Where the expected answer bears the marks, so must the reply; the last marked part counts.
    """
    del options
    needs_marks = ANSWER_START in expected
    wanted = canonical_form(_between_marks(expected, needs_marks=needs_marks))
    if wanted is None:
        raise UnreadableAnswer(f"The expected answer {expected[:60]!r} is no form such as (op arg1 arg2).")
    return canonical_form(_between_marks(answer, needs_marks=needs_marks)) == wanted


def canonical_form(text: str) -> Form | None:
    """A form as nested tuples: `(add 1 (neg 2))`; None where brackets do not close or something is left."""
    open_forms: list[list[Form]] = [[]]
    for piece in _TOKEN.findall(text):
        if piece == "(":
            open_forms.append([])
        elif piece != ")":
            open_forms[-1].append(piece)
        elif len(open_forms) == 1 or not open_forms[-1]:
            return None
        else:
            done = tuple(open_forms.pop())
            open_forms[-1].append(done)
        if len(open_forms) > MAX_DEPTH:
            return None
    is_one = len(open_forms) == 1 and len(open_forms[0]) == 1
    return open_forms[0][0] if is_one and isinstance(open_forms[0][0], tuple) else None


def _marked(text: str) -> str:
    for mark in _MARKS:
        if found := mark.findall(text):
            return str(found[-1])
    return text


def _between_marks(text: str, *, needs_marks: bool) -> str:
    found = _MARKS[0].findall(text)
    if found:
        return str(found[-1])
    return "" if needs_marks or ANSWER_START in text else text


def _json(text: str, *, is_ordered: bool) -> Any:
    fenced = _FENCE.findall(text)
    value = json.loads(
        fenced[-1] if fenced else text, object_pairs_hook=_unique, parse_constant=_refuse_constant
    )
    return _comparable(value, is_ordered=is_ordered)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands in it twice")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _comparable(value: Any, *, is_ordered: bool) -> Any:
    """Kinds made visible, since to Python `True == 1`; an integer and the same float are one number."""
    if isinstance(value, dict):
        return {key: _comparable(item, is_ordered=is_ordered) for key, item in value.items()}
    if isinstance(value, list):
        items = [_comparable(item, is_ordered=is_ordered) for item in value]
        return items if is_ordered else sorted(items, key=repr)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (type(value).__name__, value)


def _items(text: str, *, options: Options) -> frozenset[str]:
    separator = options.get("separator")
    body = _between_marks(text, needs_marks=False).strip().strip("{}[]")
    parts = body.split(str(separator)) if separator else re.split(r"[,;\n]", body)
    return frozenset(item for part in parts if (item := part.strip().lstrip("-* ").strip("\"'` ")))
