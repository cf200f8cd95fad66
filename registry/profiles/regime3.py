"""`regime3`: questions in one canonical form, `(op arg1 arg2)`, answers between two marks.

The form is enforced: a question is parsed and written anew, so that one meaning has one spelling; what cannot
be parsed is refused with the reason, and a reply without its marks is no answer.
"""

from __future__ import annotations

import re
from typing import ClassVar

from registry.errors import ProfileError
from registry.profiles.base import Penalties, Profile

START = "<<ANS_START>>"
END = "<<ANS_END>>"
TOKEN = re.compile(r"[()]|[^\s()]+")
OPERATOR = re.compile(r"[A-Za-z][A-Za-z0-9_-]*|[-+*/%^<>=!]{1,2}")
INTEGER = re.compile(r"[+-]?[0-9]+")
MAX_DEPTH = 50


class Regime3(Profile):
    """Expressions of one operator and two arguments, each an atom or an expression."""

    name: ClassVar[str] = "regime3"
    penalties: ClassVar[Penalties | None] = Penalties()

    def wrap_question(self, text: str) -> str:
        """The expression in its canonical spelling; `ProfileError` says where it is none."""
        tokens = TOKEN.findall(text)
        if not tokens or tokens[0] != "(":
            raise ProfileError(f"the canonical form is '(op arg1 arg2)', found {text.strip()[:60]!r}.")
        form, rest = _expression(tokens, depth=0)
        if rest:
            raise ProfileError(f"{' '.join(rest)[:60]!r} follows the expression {form[:60]!r}.")
        return form

    def wrap_answer(self, text: str, *, question: str) -> str:
        """The answer between its marks; `ProfileError` for an empty one or one with marks out of place."""
        del question
        answer = text.strip()
        if answer.startswith(START) and answer.endswith(END):
            answer = answer[len(START) : -len(END)]
        if START in answer or END in answer:
            raise ProfileError(f"text stands outside of {START} and {END}, or a mark is without its other.")
        if not (plain := _canonical_answer(answer)):
            raise ProfileError("the answer is empty.")
        return f"{START}{plain}{END}"

    def plain_answer(self, text: str) -> str | None:
        """What stands between the marks; None unless the reply is one answer between one pair of them."""
        try:
            wrapped = self.wrap_answer(text, question="")
        except ProfileError:
            return None
        is_marked = text.strip().startswith(START) and text.strip().endswith(END)
        return wrapped[len(START) : -len(END)] if is_marked else None

    def stop_texts(self, prompt: str) -> tuple[str, ...]:
        """The mark behind the answer."""
        del prompt
        return (END,)


def _expression(tokens: list[str], *, depth: int) -> tuple[str, list[str]]:
    """`(op arg1 arg2)` at the front of the tokens, and what follows it."""
    if depth > MAX_DEPTH:
        raise ProfileError(f"expressions are nested more than {MAX_DEPTH} deep.")
    operator, rest = (tokens[1], tokens[2:]) if len(tokens) > 1 else ("", [])
    if not OPERATOR.fullmatch(operator):
        raise ProfileError(f"{operator or 'nothing'!r} is no operator: a word or a sign follows '('.")
    arguments: list[str] = []
    while rest and rest[0] != ")":
        if rest[0] == "(":
            argument, rest = _expression(rest, depth=depth + 1)
        else:
            argument, rest = _atom(rest[0]), rest[1:]
        arguments.append(argument)
    if not rest:
        raise ProfileError(f"a ')' is missing behind '({operator} {' '.join(arguments)[:60]}'.")
    if len(arguments) != 2:
        raise ProfileError(f"'{operator}' has {len(arguments)} arguments; it takes two.")
    return f"({operator.lower()} {arguments[0]} {arguments[1]})", rest[1:]


def _atom(token: str) -> str:
    """`+07` is `7`; other words stay as they are."""
    if not INTEGER.fullmatch(token):
        return token
    digits = token.lstrip("+-").lstrip("0") or "0"
    return f"-{digits}" if token.startswith("-") and digits != "0" else digits


def _canonical_answer(text: str) -> str:
    return " ".join(_atom(word) for word in text.split())
