"""Turn conversations into token ids: the prompt by the chat template, the answer by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inference.errors import ModelError
from inference.model import TextModel
from registry.profiles.base import wrap_prompt, wrap_row
from registry.rows import ChatMessage, ChatRow


@dataclass(frozen=True)
class EncodedRow:
    """A prompt that ends where the assistant begins, and the expected answer with its end of turn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def encode_prompt(loaded: TextModel, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
    """Token ids of a conversation as the model's profile puts it, opened for the assistant's turn.

    Templates with a thinking mode (Qwen3) get it switched off, since the training rows hold answers only.
    """
    asked = wrap_prompt(loaded.profile, messages)
    turns = [{"role": message.role, "content": message.content} for message in asked]
    try:
        text = loaded.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as error:  # jinja raises whatever a template raises
        raise ModelError(f"The chat template cannot render this conversation: {error}") from error
    if not (ids := _encode(loaded, text)):
        raise ModelError("The chat template renders this conversation as nothing.")
    return ids


def encode_row(loaded: TextModel, row: ChatRow) -> EncodedRow:
    """A row's prompt and its expected answer, tokenized apart, as they are when the model generates.

    `ProfileError` for a row that the model's profile has no form for.
    """
    wrapped = wrap_row(loaded.profile, row)
    return EncodedRow(
        prompt=encode_prompt(loaded, row.prompt),
        answer=(*_encode(loaded, wrapped.expected), loaded.end_of_turn_id),
    )


def encode_text(loaded: TextModel, text: str) -> tuple[int, ...]:
    """Token ids of a text as it is, for a model to go on with; `ModelError` for a text of no tokens."""
    if not (ids := _encode(loaded, text)):
        raise ModelError(f"The text {text[:40]!r} has no tokens.")
    return ids


def _encode(loaded: TextModel, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
