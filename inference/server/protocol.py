"""OpenAI's chat completion request: what is taken from it, and what is refused rather than ignored."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inference.errors import RequestRefused
from registry.records import GenerationSettings
from registry.rows import ChatMessage

MAX_STOP_STRINGS = 4
MAX_TOP_LOGPROBS = 20
MODEL_ALIASES = ("tandem", "current")


class WireRequest(BaseModel):
    """Clients send fields of other servers and later versions: what is not known here is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class TextPart(WireRequest):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class RequestMessage(WireRequest):
    """One turn. `developer` is OpenAI's later word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[TextPart, ...]

    def as_chat_message(self) -> ChatMessage:
        """The turn with its content as one text."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(WireRequest):
    """Whether a last chunk tells the token counts."""

    include_usage: bool = False


class ChatRequest(WireRequest):
    """`POST /v1/chat/completions`. Greedy by default: served as it was evaluated."""

    model: str = MODEL_ALIASES[0]
    messages: tuple[RequestMessage, ...] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    logit_bias: Any = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    modalities: Any = None
    audio: Any = None

    @property
    def chat_messages(self) -> tuple[ChatMessage, ...]:
        """The conversation as the registry's turns."""
        return tuple(message.as_chat_message() for message in self.messages)

    @property
    def wants_usage_chunk(self) -> bool:
        """True if a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


def check_supported(request: ChatRequest) -> None:
    """`RequestRefused` for a field that asks for what this server cannot do."""
    refuse_unsupported(
        {
            "n": request.n not in (None, 1),
            "tools": bool(request.tools),
            "functions": bool(request.functions),
            "response_format": request.response_format not in (None, {"type": "text"}),
            "logit_bias": bool(request.logit_bias),
            "presence_penalty": bool(request.presence_penalty),
            "frequency_penalty": bool(request.frequency_penalty),
            "modalities": request.modalities not in (None, ["text"]),
            "audio": bool(request.audio),
        }
    )
    if request.top_logprobs and not request.logprobs:
        raise RequestRefused(
            "'top_logprobs' needs 'logprobs' to be true.", code="invalid_value", param="top_logprobs"
        )


def refuse_unsupported(asked: Mapping[str, bool]) -> None:
    """`RequestRefused` names the first field that was asked for and is not there."""
    for name, is_asked in asked.items():
        if is_asked:
            raise RequestRefused(
                f"This server does not support {name!r} with that value.",
                remedy="Leave it out.",
                code="unsupported_parameter",
                param=name,
            )


def generation_settings(request: ChatRequest, *, max_new_tokens: int) -> GenerationSettings:
    """How to generate; `RequestRefused` for more tokens than the server allows or for unusable stops."""
    param = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    return settings_of(
        num_tokens=request.max_completion_tokens or request.max_tokens,
        param=param,
        max_new_tokens=max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
    )


def settings_of(
    *,
    num_tokens: int | None,
    param: str,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: str | tuple[str, ...] | None,
) -> GenerationSettings:
    """Settings for a request of any form; `param` is what its field for the number of tokens is called."""
    if num_tokens is not None and num_tokens > max_new_tokens:
        raise RequestRefused(
            f"{num_tokens} tokens were asked for; this server generates {max_new_tokens} at most.",
            param=param,
        )
    return GenerationSettings(
        max_new_tokens=num_tokens or max_new_tokens,
        temperature=temperature or 0.0,
        top_p=top_p or 1.0,
        seed=secrets.randbits(32) if seed is None else seed,
        stop=_stop_strings(stop),
    )


def _stop_strings(stop: str | tuple[str, ...] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop or ()
    if len(strings) > MAX_STOP_STRINGS or not all(strings):
        raise RequestRefused(f"'stop' takes up to {MAX_STOP_STRINGS} strings, none empty.", param="stop")
    return strings
