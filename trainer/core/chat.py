"""Conversations as tokens, with exactly those marked that the model must learn to say.

A chat template shows a turn in one way while the model is asked for it and, in some families, in another
once the conversation went on: Qwen3 drops an earlier turn's thoughts. So each assistant turn is rendered
up to its end, and its prompt as it stands when the model is asked; the difference is what is learnt. Turns
whose rendering is a prefix of a later one share that sequence, the others get a sequence of their own.
Every assistant turn is thus learnt once, in the very context that it is generated in, and no template
needs `{% generation %}` marks.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from registry.errors import ProfileError
from registry.files import sha256_file, sha256_text
from registry.profiles.base import Profile, wrap_row
from registry.profiles.catalogue import PLAIN, version_of
from registry.rows import ChatMessage, ChatRow
from trainer.errors import DataError, ModelError

SENTINEL = "tandem"


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and for each whether it is learnt. It ends with a learnt token."""

    tokens: tuple[int, ...]
    is_answer: tuple[bool, ...]


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text: context, or an assistant's turn with its end-of-turn token."""

    text: str
    is_answer: bool


@dataclass(frozen=True)
class _Turn:
    prompt: str
    closed: str


class ChatEncoder:
    """Encodes rows, rewritten by a profile, with a tokenizer's own chat template.

    `tokenizer` is a transformers tokenizer. Raises `ModelError` where it has no chat template, or one
    that ends no assistant turn with a special token: the model could never learn to stop.
    """

    def __init__(self, tokenizer: Any, *, profile: Profile = PLAIN) -> None:
        self._tokenizer = tokenizer
        self._profile = profile
        self.end_of_turn_id = self._find_end_of_turn()

    @cached_property
    def identity(self) -> str:
        """Hex sha256 of what decides tokens: profile, vocabulary, rules and chat template."""
        tokenizer = self._tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
        versions = [version("transformers"), version("tokenizers")]
        special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
        profile = [self._profile.name, version_of(self._profile.name), *_code_of(self._profile)]
        parts = [type(tokenizer).__name__, versions, tokenizer.chat_template, special, rules, profile]
        return sha256_text(json.dumps(parts, sort_keys=True))

    def encode(self, rows: Sequence[ChatRow], *, first_number: int = 1) -> Iterator[list[Example]]:
        """The sequences of each row, in order; `DataError` names the row by its number in the file."""
        numbered = [
            (number, self._rewritten(row, number=number))
            for number, row in enumerate(rows, start=first_number)
        ]
        split = [self._split_row(row, number=number) for number, row in numbered]
        ids = iter(self._tokenize([piece.text for row in split for pieces in row for piece in pieces]))
        for (number, _), row_pieces in zip(numbered, split, strict=True):
            yield [
                self._join([(piece, next(ids)) for piece in pieces], number=number) for pieces in row_pieces
            ]

    def _rewritten(self, row: ChatRow, *, number: int) -> ChatRow:
        try:
            return wrap_row(self._profile, row)
        except ProfileError as error:
            raise DataError(
                f"Row {number} is not for profile {self._profile.name}: {error.message}",
                remedy="Mend or remove it; `tandem data convert --profile NAME --drop-bad` leaves such out.",
            ) from error

    def _split_row(self, row: ChatRow, *, number: int) -> list[list[Piece]]:
        turns = [
            self._render_turn(row.messages[: index + 1], number=number)
            for index, message in enumerate(row.messages)
            if message.role == "assistant"
        ]
        return [_pieces(group) for group in _group_by_rendering(turns)]

    def _render_turn(self, messages: Sequence[ChatMessage], *, number: int) -> _Turn:
        # Thinking off is how the model is asked; a row that carries thoughts opens with thinking on.
        for is_thinking in (False, True):
            closed = self._render(messages, number=number, is_thinking=is_thinking)
            prompt = self._render(messages[:-1], number=number, is_open=True, is_thinking=is_thinking)
            if closed.startswith(prompt):
                return _Turn(prompt=prompt, closed=closed)
        raise ModelError(
            f"Row {number}: the chat template does not show turn {len(messages)} as the continuation of the "
            "prompt that asks for it, so what the model says cannot be told from what it is given.",
            remedy="Use a template whose generation prompt is the beginning of the assistant's turn.",
        )

    def _render(
        self,
        messages: Sequence[ChatMessage],
        *,
        number: int,
        is_open: bool = False,
        is_thinking: bool = False,
    ) -> str:
        try:
            return self._shown(messages, is_open=is_open, is_thinking=is_thinking)
        except Exception as error:  # jinja raises whatever a template raises
            raise DataError(
                f"Row {number}: the model's chat template refuses it: {error}.",
                remedy="Check the order of the roles.",
            ) from error

    def _shown(
        self, messages: Sequence[ChatMessage], *, is_open: bool = False, is_thinking: bool = False
    ) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        text: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=is_open, enable_thinking=is_thinking
        )
        return text

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _join(self, pieces: Sequence[tuple[Piece, list[int]]], *, number: int) -> Example:
        tokens: list[int] = []
        is_answer: list[bool] = []
        length = 0
        for piece, ids in pieces:
            num_learnt = self._num_learnt(ids, number=number) if piece.is_answer else 0
            tokens += ids
            is_answer += [True] * num_learnt + [False] * (len(ids) - num_learnt)
            length = length if not num_learnt else len(tokens) - len(ids) + num_learnt
        return Example(tokens=tuple(tokens[:length]), is_answer=tuple(is_answer[:length]))

    def _num_learnt(self, ids: list[int], *, number: int) -> int:
        """Up to and including the end-of-turn token; a line break after it is the template's."""
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        if self._profile.name != PLAIN.name and unknown is not None and unknown in ids:
            raise ModelError(
                f"Row {number}: the model's tokenizer has no token for a part of what profile "
                f"{self._profile.name} writes, so the model could never say it.",
                remedy="Use a tokenizer that falls back to bytes, such as Qwen3's, or another profile.",
            )
        if ids.count(self.end_of_turn_id) == 1:
            return ids.index(self.end_of_turn_id) + 1
        name = self._tokenizer.convert_ids_to_tokens(self.end_of_turn_id)
        raise DataError(
            f"Row {number}: an assistant's turn does not hold the end-of-turn token {name!r} exactly once.",
            remedy="Remove control tokens from the row's text.",
        )

    def _find_end_of_turn(self) -> int:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ModelError(
                "The model's tokenizer has no chat template.",
                remedy="Add chat_template.jinja, for example from the base model.",
            )
        asked = ChatMessage(role="user", content="?")
        said = ChatMessage(role="assistant", content=SENTINEL)
        try:
            rest = self._shown((asked, said)).rpartition(SENTINEL)[2]
        except Exception as error:  # no row is at fault where a question and its answer cannot be shown
            raise ModelError(
                f"The model's chat template cannot show a question and its answer: {error}.",
                remedy="Mend chat_template.jinja, or take it from the base model.",
            ) from error
        ids = self._tokenize([rest])[0] if rest else []
        if not ids or ids[0] not in self._tokenizer.added_tokens_decoder:
            raise ModelError(
                "The model's chat template does not end an assistant's turn with a special token, so the "
                "model could not learn to stop.",
                remedy="Use a template such as ChatML, which ends a turn with <|im_end|>.",
            )
        return ids[0]


def _group_by_rendering(turns: Sequence[_Turn]) -> list[list[_Turn]]:
    """Turns that can be learnt from one rendering, the longest, which stands last in its group."""
    groups: list[list[_Turn]] = []
    remaining = list(turns)
    while remaining:
        longest = remaining[-1].closed
        groups.append([turn for turn in remaining if longest.startswith(turn.closed)])
        remaining = [turn for turn in remaining if not longest.startswith(turn.closed)]
    return groups[::-1]


def _code_of(profile: Profile) -> list[str]:
    """Hex sha256 of the file of each class that a profile is made of; what all share is hashed elsewhere."""
    kinds = [kind for kind in type(profile).__mro__ if issubclass(kind, Profile) and kind is not Profile]
    return [sha256_file(Path(inspect.getfile(kind))) for kind in kinds]


def _pieces(turns: Sequence[_Turn]) -> list[Piece]:
    pieces, position = [], 0
    for turn in turns:
        pieces.append(Piece(text=turn.closed[position : len(turn.prompt)], is_answer=False))
        pieces.append(Piece(text=turn.closed[len(turn.prompt) :], is_answer=True))
        position = len(turn.closed)
    return pieces
