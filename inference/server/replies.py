"""OpenAI's answers: whole, as server-sent events, and as lists."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from inference.generation import Generated
from inference.server.engine import ServedRelease

DONE = b"data: [DONE]\n\n"
OWNER = "tandem"


@dataclass(frozen=True)
class ReplyHead:
    """What every part of one answer repeats: its id, its second, and the release that gives it."""

    completion_id: str
    created: int
    release: ServedRelease
    num_prompt_tokens: int

    def completion(self, result: Generated) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": None,
            "finish_reason": result.finish_reason,
        }
        return self._body("chat.completion") | {"choices": [choice], "usage": self._usage(result)}

    def role_chunk(self) -> bytes:
        """The first event: whose turn it is."""
        return self._chunk({"role": "assistant", "content": ""}, finish_reason=None)

    def text_chunk(self, text: str) -> bytes:
        """An event with the next text."""
        return self._chunk({"content": text}, finish_reason=None)

    def end_chunk(self, result: Generated) -> bytes:
        """The event that says why the reply ended."""
        return self._chunk({}, finish_reason=result.finish_reason)

    def usage_chunk(self, result: Generated) -> bytes:
        """The event with token counts and no choice."""
        return event(self._body("chat.completion.chunk") | {"choices": [], "usage": self._usage(result)})

    def _chunk(self, delta: dict[str, str], *, finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(self._body("chat.completion.chunk") | {"choices": [choice]})

    def _body(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.release.release_id,
            "system_fingerprint": f"fp_{self.release.loaded.weights_sha256[:12]}",
        }

    def _usage(self, result: Generated) -> dict[str, int]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": result.num_tokens,
            "total_tokens": self.num_prompt_tokens + result.num_tokens,
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
