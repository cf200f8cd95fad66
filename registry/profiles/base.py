"""What a profile is: a pure, reversible rewriting of what is asked and answered, and its pull on generation.

The trainer learns from the rewritten rows, inference asks in the rewritten way and undoes the reply. Both
call the same methods, which look at texts alone: the same text is always rewritten in the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from registry.errors import ProfileError
from registry.rows import ChatMessage, ChatRow
from registry.values import Record


class Penalties(Record):
    """What is added to the logits (natural logarithm) while a reply is generated.

    A token that would complete one of `unwanted` gets `unwanted_penalty`, times each of `early_factors`
    for `steps_per_factor` tokens, then times 1. Once a stop text stands in the reply, token k after it costs
    every token but the end `stop_penalty` * 2^k, `max_stop_penalty` at most, and the end gains `end_bonus`.
    """

    unwanted: tuple[str, ...] = ()
    unwanted_penalty: float = Field(default=-80.0, le=0)
    early_factors: tuple[float, ...] = (8.0, 2.0, 1.5)
    steps_per_factor: int = Field(default=4, ge=1)
    stop_penalty: float = Field(default=-5.0, le=0)
    max_stop_penalty: float = Field(default=-80.0, le=0)
    end_bonus: float = Field(default=10.0, ge=0)

    def unwanted_at(self, step: int) -> float:
        """Added to a token that would complete an unwanted text as token `step` of the reply, from 0."""
        place = step // self.steps_per_factor
        return self.unwanted_penalty * (self.early_factors[place] if place < len(self.early_factors) else 1.0)

    def stopped_at(self, num_tokens: int) -> float:
        """Added to every token but the end, `num_tokens` after a stop text was complete."""
        return max(self.max_stop_penalty, self.stop_penalty * 2.0 ** min(num_tokens, 32))


class Profile(ABC):
    """A way of asking and answering. Rewriting what is rewritten already changes nothing.

    Subclass it, name the class in the entry-point group `tandem.profiles`, and a job may name it.
    """

    name: ClassVar[str]
    penalties: ClassVar[Penalties | None] = None

    @abstractmethod
    def wrap_question(self, text: str) -> str:
        """A user's turn as the model is to read it; `ProfileError` where there is no form for it."""

    @abstractmethod
    def wrap_answer(self, text: str, *, question: str) -> str:
        """An answer to the plain or wrapped `question` as the model is to say it; `ProfileError`."""

    @abstractmethod
    def plain_answer(self, text: str) -> str | None:
        """The answer in a reply, as a scorer compares it; None where the reply is not in its form."""

    def stop_texts(self, prompt: str) -> tuple[str, ...]:
        """Texts after which a reply to this rendered prompt is over."""
        del prompt
        return ()


def wrap_row(profile: Profile, row: ChatRow) -> ChatRow:
    """The row as the model is to learn it; `ProfileError` with the profile's reason for a bad one."""
    wrapped = _wrapped(profile, row.messages, is_strict=True)
    return row if wrapped == row.messages else row.changed(messages=wrapped)


def wrap_prompt(profile: Profile, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """A conversation as the model is asked; a turn that the profile has no form for stays as it is."""
    return _wrapped(profile, messages, is_strict=False)


def expected_answer(profile: Profile, row: ChatRow) -> str:
    """The plain answer that a reply is compared with; `ProfileError` for a bad row."""
    wrapped = wrap_row(profile, row).expected
    plain = profile.plain_answer(wrapped)
    if plain is None:
        raise ProfileError(f"profile {profile.name} cannot read back its own answer {wrapped[:60]!r}.")
    return plain


def _wrapped(
    profile: Profile, messages: Sequence[ChatMessage], *, is_strict: bool
) -> tuple[ChatMessage, ...]:
    wrapped: list[ChatMessage] = []
    question = ""
    for index, message in enumerate(messages):
        content = message.content
        try:
            if message.role == "user":
                content = question = profile.wrap_question(content)
            elif message.role == "assistant":
                content = profile.wrap_answer(content, question=question)
        except ProfileError as error:
            if is_strict:
                raise ProfileError(f"messages[{index}] ({message.role}): {error.message}") from None
        wrapped.append(message if content == message.content else message.changed(content=content))
    return tuple(wrapped)
