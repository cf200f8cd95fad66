"""`POST /v1/completions` and `POST /generate`: what is taken from them, and what is refused."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from inference.errors import RequestRefused
from inference.server.protocol import MODEL_ALIASES, StreamOptions, WireRequest, refuse_unsupported
from registry.calibrations import ServedConfidence
from registry.records import Record

MAX_PROMPTS = 16
MAX_LOGPROBS = 20


class CompletionRequest(WireRequest):
    """`POST /v1/completions`: text that goes on, without a chat template. Greedy by default."""

    model: str = MODEL_ALIASES[0]
    prompt: str | tuple[str, ...] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=16, ge=1)
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logit_bias: Any = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt a choice."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    def check(self) -> None:
        """`RequestRefused` for what this server cannot do."""
        refuse_unsupported(
            {
                "n": self.n not in (None, 1),
                "best_of": self.best_of not in (None, 1),
                "echo": bool(self.echo),
                "suffix": bool(self.suffix),
                "logit_bias": bool(self.logit_bias),
                "presence_penalty": bool(self.presence_penalty),
                "frequency_penalty": bool(self.frequency_penalty),
            }
        )
        if len(self.prompts) > MAX_PROMPTS or not all(self.prompts):
            raise RequestRefused(
                f"'prompt' takes 1 to {MAX_PROMPTS} texts, none empty.", code="invalid_prompt", param="prompt"
            )
        if self.stream and len(self.prompts) > 1:
            raise RequestRefused(
                "A stream answers one prompt.", remedy="Send one request a prompt.", param="stream"
            )


class GenerateRequest(Record):
    """`POST /generate`: one question, one answer, no list of choices. Unknown fields are refused."""

    prompt: str = Field(min_length=1)
    system: str | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()


class GenerateAnswer(Record):
    """The answer, how sure the model was of the whole of it, and who gave it."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_tokens: int
    logprob: float | None
    confidence: ServedConfidence
    release_id: str
    weights_sha256: str
