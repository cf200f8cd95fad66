"""`POST /v1/chat/completions`: from a checked request to an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from inference.errors import PromptTooLong, RequestRefused, ServerError
from inference.generation import Generated
from inference.server.config import ServerConfig
from inference.server.engine import Engine, ServedRelease
from inference.server.failures import describe
from inference.server.protocol import MODEL_ALIASES, ChatRequest, check_supported, generation_settings
from inference.server.replies import DONE, ReplyHead, event
from inference.server.scheduler import StreamPiece
from registry.serving import RELEASE_HEADER

logger = logging.getLogger(__name__)
Pieces = AsyncGenerator[StreamPiece]
DISCONNECT_SECONDS = 0.2


class ChatHandler:
    """Answers chat requests with the release that is active when they arrive."""

    def __init__(self, engine: Engine, *, config: ServerConfig, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        """Generate and answer. Errors before the first token have their own status, streamed or not."""
        check_supported(body)
        settings = generation_settings(body, max_new_tokens=self._config.max_new_tokens)
        release = self._engine.active()
        _check_model(body.model, release=release)
        prompt = await self._engine.encode(release, body.chat_messages)
        self._check_length(prompt)
        head = ReplyHead(
            completion_id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(self._clock().timestamp()),
            release=release,
            num_prompt_tokens=len(prompt),
        )
        pieces = self._engine.reply(release, prompt, settings=settings, is_streamed=bool(body.stream))
        headers = {RELEASE_HEADER: release.release_id}
        if not body.stream:
            result = await _whole(pieces, request=request)
            return JSONResponse(head.completion(result), headers=headers)
        first = await anext(pieces)
        if first.result is not None:
            _checked(first.result)
        events = _events(head, first=first, pieces=pieces, wants_usage=body.wants_usage_chunk)
        headers["Cache-Control"] = "no-cache"
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    def _check_length(self, prompt: tuple[int, ...]) -> None:
        if len(prompt) > self._config.max_prompt_tokens:
            raise PromptTooLong(
                f"The prompt has {len(prompt)} tokens; this server reads {self._config.max_prompt_tokens}.",
                remedy="Shorten the conversation.",
            )


def _check_model(name: str, *, release: ServedRelease) -> None:
    """A client that names a release gets that one or none; an alias gets whichever is active."""
    if name not in (release.release_id, *MODEL_ALIASES):
        raise RequestRefused(
            f"The model {name!r} is not served; {release.release_id!r} is.",
            remedy=f"Ask for it, or for {MODEL_ALIASES[0]!r}, which is always the active release.",
            status_code=404,
            code="model_not_found",
            param="model",
        )


async def _whole(pieces: Pieces, *, request: Request) -> Generated:
    """The last piece is all that comes; until then the client may leave, which ends the generation."""
    async with aclosing(pieces):
        coming = asyncio.ensure_future(anext(pieces))
        while not (await asyncio.wait([coming], timeout=DISCONNECT_SECONDS))[0]:
            if await request.is_disconnected():
                coming.cancel()
                raise RequestRefused("The client left.", status_code=499)
        piece = coming.result()
    if piece.result is None:
        raise ServerError("The generation ended without a result.")
    return _checked(piece.result)


async def _events(
    head: ReplyHead, *, first: StreamPiece, pieces: Pieces, wants_usage: bool
) -> AsyncIterator[bytes]:
    async with aclosing(pieces):
        yield head.role_chunk()
        try:
            async for piece in _chained(first, pieces):
                if piece.text:
                    yield head.text_chunk(piece.text)
                if piece.result is not None:
                    yield head.end_chunk(_checked(piece.result))
                    if wants_usage:
                        yield head.usage_chunk(piece.result)
        except Exception as error:
            # The status is sent already: what failed can only be told inside the stream.
            logger.exception("stream %s failed", head.completion_id)
            yield event(describe(error)[1])
        yield DONE


async def _chained(first: StreamPiece, rest: Pieces) -> AsyncIterator[StreamPiece]:
    yield first
    if first.result is None:
        async for piece in rest:
            yield piece


def _checked(result: Generated) -> Generated:
    if result.finish_reason == "error":
        raise ServerError("The model's logits were not finite, so it has no answer.")
    return result
