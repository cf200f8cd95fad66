"""OpenAI's answers: whole, as server-sent events, and as lists."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from inference.generation import Generated
from inference.server.confidence import confidence_of
from inference.server.logprobs import chat_logprobs
from inference.server.swap import ServedRelease
from inference.server.work import StreamPiece
from registry.records import GenerationSettings

DONE = b"data: [DONE]\n\n"
OWNER = "tandem"


@dataclass(frozen=True)
class ReplyHead:
    """What every part of one answer repeats: its id, its second, and the release that gives it."""

    completion_id: str
    created: int
    release: ServedRelease
    num_prompt_tokens: int
    settings: GenerationSettings
    wants_logprobs: bool = False

    def completion(self, piece: StreamPiece, *, result: Generated) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": self._logprobs(piece),
            "finish_reason": result.finish_reason,
        }
        body = self._body("chat.completion") | {"choices": [choice], "usage": self._usage(result)}
        return body | self._confidence(result)

    def role_chunk(self) -> bytes:
        """The first event: whose turn it is."""
        return self._chunk({"role": "assistant", "content": ""})

    def text_chunk(self, piece: StreamPiece) -> bytes | None:
        """An event with the next text and its tokens; None where there is nothing to tell."""
        logprobs = self._logprobs(piece)
        if not piece.text and not (logprobs and logprobs["content"]):
            return None
        return self._chunk({"content": piece.text}, logprobs=logprobs)

    def end_chunk(self, result: Generated) -> bytes:
        """The event that says why the reply ended."""
        return self._chunk({}, finish_reason=result.finish_reason, more=self._confidence(result))

    def usage_chunk(self, result: Generated) -> bytes:
        """The event with token counts and no choice."""
        return event(self._body("chat.completion.chunk") | {"choices": [], "usage": self._usage(result)})

    def _logprobs(self, piece: StreamPiece) -> dict[str, Any] | None:
        return chat_logprobs(piece.tokens, loaded=self.release.loaded) if self.wants_logprobs else None

    def _chunk(
        self,
        delta: dict[str, str],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event(self._body("chat.completion.chunk") | {"choices": [choice]} | (more or {}))

    def _body(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.release.release_id,
            "system_fingerprint": fingerprint(self.release),
        }

    def _confidence(self, result: Generated) -> dict[str, Any]:
        """A field of ours beside OpenAI's."""
        told = confidence_of(result, note=self.release.confidence, settings=self.settings)
        return {"confidence": told.model_dump(mode="json")}

    def _usage(self, result: Generated) -> dict[str, int]:
        return usage(self.num_prompt_tokens, num_tokens=result.num_tokens)


def fingerprint(release: ServedRelease) -> str:
    """Names the weights in OpenAI's field for the configuration of a backend."""
    return f"fp_{release.loaded.weights_sha256[:12]}"


def usage(num_prompt_tokens: int, *, num_tokens: int) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def model_entry(release: ServedRelease, *, name: str) -> dict[str, Any]:
    """A line of `GET /v1/models`; an alias says which release it stands for."""
    return {
        "id": name,
        "object": "model",
        "created": int(release.loaded_at.timestamp()),
        "owned_by": OWNER,
        "root": release.release_id,
    }
