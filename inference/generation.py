"""A reply as it grows, token by token, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inference.detokenize import ReplyText, decode
from inference.errors import PromptTooLong
from inference.model import TextModel
from registry.records import GenerationSettings

FinishReason = Literal["stop", "length", "error"]
Prompt = Sequence[int]


@dataclass(frozen=True)
class Step:
    """A row's next token and the log-probability the model gave it; NaN where the logits were not finite.

    `tempered` are its log-probabilities at the model's `confidence_temperatures`.
    """

    row: int
    token_id: int
    logprob: float
    tempered: tuple[float, ...] = ()


@dataclass(frozen=True)
class Generated:
    """One reply.

    `token_ids` leave out the token that ended the turn; `num_tokens` counts it. `logprob` is the sum of the
    model's log-probabilities (nats, before temperature) over all generated tokens, the end included, and
    `confidence` is its exponential: the probability of the whole sequence. Both are `None`, and
    `finish_reason` is "error", where the logits were not finite. `tempered_logprobs` are what `logprob` would
    be with the logits divided by each of the model's `confidence_temperatures`.
    """

    text: str
    token_ids: tuple[int, ...]
    num_tokens: int
    finish_reason: FinishReason
    logprob: float | None
    confidence: float | None
    tempered_logprobs: tuple[float, ...] = ()


def room_for_reply(loaded: TextModel, prompt: Prompt, *, settings: GenerationSettings) -> int:
    """How many tokens a reply may have; `PromptTooLong` if the prompt leaves no position for one."""
    room = loaded.max_positions - len(prompt)
    if room < 1:
        raise PromptTooLong(
            f"The prompt has {len(prompt)} tokens; the model reads {loaded.max_positions}, reply included.",
            remedy="Shorten the conversation.",
        )
    return min(room, settings.max_new_tokens)


class Reply:
    """A reply as it grows. Text is followed token by token only where somebody looks at it."""

    def __init__(
        self,
        loaded: TextModel,
        *,
        max_new_tokens: int,
        settings: GenerationSettings,
        is_streamed: bool = False,
    ) -> None:
        self._loaded = loaded
        self._max_new_tokens = max_new_tokens
        self._follower = (
            ReplyText(loaded.tokenizer, stop=settings.stop) if settings.stop or is_streamed else None
        )
        self._token_ids: list[int] = []
        self._pieces: list[str] = []
        self._logprob = 0.0
        self._tempered = [0.0] * len(loaded.confidence_temperatures)
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, step: Step) -> str:
        """Take the next token; return the text that it makes certain."""
        if not math.isfinite(step.logprob):
            self.finish_reason = "error"
            return ""
        self._logprob += step.logprob
        self._tempered = [sum(pair) for pair in zip(self._tempered, step.tempered, strict=True)]
        self.num_tokens += 1
        if step.token_id in self._loaded.stop_token_ids:
            self.finish_reason = "stop"
            return ""
        self._token_ids.append(step.token_id)
        piece = self._follow(step.token_id)
        if self._follower is not None and self._follower.is_stopped:
            self.finish_reason = "stop"
        elif self.num_tokens >= self._max_new_tokens:
            self.finish_reason = "length"
        return piece

    def rest(self) -> str:
        """Text held back until it was clear that no token follows; a stop string in it ends the reply."""
        if self._follower is None:
            return ""
        piece = self._follower.finish()
        self._pieces.append(piece)
        if self._follower.is_stopped and self.finish_reason == "length":
            self.finish_reason = "stop"
        return piece

    def result(self) -> Generated:
        """The finished reply."""
        self.rest()
        is_known = self.finish_reason != "error"
        return Generated(
            text=decode(self._loaded.tokenizer, self._token_ids)
            if self._follower is None
            else "".join(self._pieces),
            token_ids=tuple(self._token_ids),
            num_tokens=self.num_tokens,
            finish_reason=self.finish_reason or "error",
            logprob=self._logprob if is_known else None,
            confidence=min(1.0, math.exp(self._logprob)) if is_known else None,
            tempered_logprobs=tuple(self._tempered)
            if is_known and math.isfinite(sum(self._tempered))
            else (),
        )

    def _follow(self, token_id: int) -> str:
        if self._follower is None:
            return ""
        piece = self._follower.add(token_id)
        self._pieces.append(piece)
        return piece
