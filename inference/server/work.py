"""A request that is generated for: its prompt, its reply as it grows, and who waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from inference.continuous import NextToken
from inference.errors import ModelFailed
from inference.generation import Generated, Reply, Step, room_for_reply
from inference.model import TextModel
from registry.records import GenerationSettings


@dataclass(frozen=True)
class StreamPiece:
    """The next text of a streamed reply, and the tokens it came from; `result` is set on the last piece."""

    text: str
    tokens: tuple[NextToken, ...] = ()
    result: Generated | None = None


@dataclass(eq=False)
class Work:
    """A prompt to answer. `put` is called from the generating thread: with pieces, or one error at the end.

    Where `is_streamed` is false, one piece comes, the last. Raises `PromptTooLong` when it is made.
    """

    loaded: TextModel
    release_id: str
    prompt: tuple[int, ...]
    settings: GenerationSettings
    put: Callable[[StreamPiece | Exception], None]
    is_streamed: bool = False
    num_likeliest: int = 0
    is_unwanted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.room = room_for_reply(self.loaded, self.prompt, settings=self.settings)
        self.num_tokens = len(self.prompt) + self.room
        self.reply = Reply(
            self.loaded, max_new_tokens=self.room, settings=self.settings, is_streamed=self.is_streamed
        )
        self.told: list[NextToken] = []
        self.submitted_at_seconds = time.monotonic()
        self.first_token_seconds: float | None = None

    def take(self, token: NextToken) -> bool:
        """Hand its next token to who waits; True where it was the last."""
        text = self.reply.add(Step(token.key, token.token_id, token.logprob, tempered=token.tempered))
        if self.reply.finish_reason == "error":
            self.put(ModelFailed("The model's logits were not finite, so it has no answer."))
            return True
        self.told.append(token)
        if self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self.submitted_at_seconds
        if self.reply.finish_reason is None and not self.is_streamed:
            return False
        told, self.told = tuple(self.told), []
        if self.reply.finish_reason is None:
            self.put(StreamPiece(text, tokens=told))
            return False
        self.put(StreamPiece(text + self.reply.rest(), tokens=told, result=self.reply.result()))
        return True
