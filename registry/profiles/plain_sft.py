"""`plain_sft`: rows as they are."""

from __future__ import annotations

from typing import ClassVar

from registry.profiles.base import Profile


class PlainSft(Profile):
    """Nothing is rewritten and nothing is penalised."""

    name: ClassVar[str] = "plain_sft"

    def wrap_question(self, text: str) -> str:
        """The text."""
        return text

    def wrap_answer(self, text: str, *, question: str) -> str:
        """The text."""
        del question
        return text

    def plain_answer(self, text: str) -> str | None:
        """The text."""
        return text
