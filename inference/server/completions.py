"""`POST /v1/completions` and `POST /generate`: text that goes on, and one plain question with one answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from inference.generation import Generated
from inference.server.asking import Pieces, check_length, check_model, headers_of, streamed, whole
from inference.server.completion_protocol import CompletionRequest, GenerateAnswer, GenerateRequest
from inference.server.confidence import confidence_of
from inference.server.config import ServerConfig
from inference.server.engine import Engine
from inference.server.logprobs import completion_logprobs
from inference.server.protocol import settings_of
from inference.server.replies import event, fingerprint, usage
from inference.server.swap import ServedRelease
from inference.server.work import StreamPiece
from registry.rows import ChatMessage


@dataclass(frozen=True)
class CompletionForm:
    """How a completion's answer looks, whole and streamed."""

    completion_id: str
    created: int
    release: ServedRelease
    num_prompt_tokens: int
    wants_logprobs: bool

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """What every part repeats, and its choices."""
        return {
            "id": self.completion_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.release.release_id,
            "system_fingerprint": fingerprint(self.release),
            "choices": choices,
        }

    def choice(
        self, piece: StreamPiece, *, text: str, index: int = 0, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One text with the tokens it came from."""
        loaded = self.release.loaded
        logprobs = completion_logprobs(piece.tokens, loaded=loaded) if self.wants_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def role_chunk(self) -> bytes | None:
        """A completion has no roles."""
        return None

    def text_chunk(self, piece: StreamPiece) -> bytes | None:
        """The next text; None where there is nothing to tell."""
        if not piece.text and not (self.wants_logprobs and piece.tokens):
            return None
        return event(self.body([self.choice(piece, text=piece.text)]))

    def end_chunk(self, result: Generated) -> bytes:
        """Why the reply ended."""
        return event(self.body([self.choice(StreamPiece(""), text="", finish_reason=result.finish_reason)]))

    def usage_chunk(self, result: Generated) -> bytes:
        """Token counts, and no choice."""
        counts = usage(self.num_prompt_tokens, num_tokens=result.num_tokens)
        return event(self.body([]) | {"usage": counts})


class CompletionHandler:
    """Answers with the release that is active when a request arrives."""

    def __init__(self, engine: Engine, *, config: ServerConfig, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Go on with each prompt; several are generated for at the same time."""
        body.check()
        release = await self._engine.release_for(body.model)
        check_model(body.model, release=release)
        prompts = [await self._engine.encode_text(release, text) for text in body.prompts]
        for prompt in prompts:
            check_length(prompt, max_prompt_tokens=self._config.max_prompt_tokens)
        form = CompletionForm(
            completion_id=f"cmpl-{uuid.uuid4().hex}",
            created=int(self._clock().timestamp()),
            release=release,
            num_prompt_tokens=sum(map(len, prompts)),
            wants_logprobs=body.logprobs is not None,
        )
        replies = [self._reply(body, release=release, prompt=prompt) for prompt in prompts]
        if body.stream:
            wants_usage = body.stream_options is not None and body.stream_options.include_usage
            return await streamed(replies[0], form=form, release=release, wants_usage=wants_usage)
        results = await asyncio.gather(*(whole(reply, request=request) for reply in replies))
        choices = [
            form.choice(piece, text=result.text, index=index, finish_reason=result.finish_reason)
            for index, (piece, result) in enumerate(results)
        ]
        num_tokens = sum(result.num_tokens for _, result in results)
        answer = form.body(choices) | {"usage": usage(form.num_prompt_tokens, num_tokens=num_tokens)}
        return JSONResponse(answer, headers=headers_of(release))

    async def generate(self, body: GenerateRequest, request: Request) -> Response:
        """One question by the chat template, one answer."""
        settings = settings_of(
            num_tokens=body.max_new_tokens,
            param="max_new_tokens",
            max_new_tokens=self._config.max_new_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stop,
        )
        release = await self._engine.release_for()
        turns = [ChatMessage(role="system", content=body.system)] if body.system else []
        messages = (*turns, ChatMessage(role="user", content=body.prompt))
        prompt = await self._engine.encode(release, messages)
        check_length(prompt, max_prompt_tokens=self._config.max_prompt_tokens)
        pieces = self._engine.reply(release, prompt, settings=settings)
        _, result = await whole(pieces, request=request)
        answer = GenerateAnswer(
            text=result.text,
            finish_reason=result.finish_reason,
            num_prompt_tokens=len(prompt),
            num_tokens=result.num_tokens,
            logprob=result.logprob,
            confidence=confidence_of(result, note=release.confidence, settings=settings),
            release_id=release.release_id,
            weights_sha256=release.loaded.weights_sha256,
        )
        return JSONResponse(answer.model_dump(mode="json"), headers=headers_of(release))

    def _reply(self, body: CompletionRequest, *, release: ServedRelease, prompt: tuple[int, ...]) -> Pieces:
        settings = settings_of(
            num_tokens=body.max_tokens,
            param="max_tokens",
            max_new_tokens=self._config.max_new_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stop,
        )
        return self._engine.reply(
            release,
            prompt,
            settings=settings,
            is_streamed=bool(body.stream),
            num_likeliest=body.logprobs or 0,
        )
