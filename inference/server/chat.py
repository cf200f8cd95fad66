"""`POST /v1/chat/completions`: from a checked request to an answer, whole or streamed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from inference.server.asking import check_length, check_model, headers_of, streamed, whole
from inference.server.config import ServerConfig
from inference.server.engine import Engine
from inference.server.protocol import ChatRequest, check_supported, generation_settings
from inference.server.replies import ReplyHead


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
        release = await self._engine.release_for(body.model)
        check_model(body.model, release=release)
        prompt = await self._engine.encode(release, body.chat_messages)
        check_length(prompt, max_prompt_tokens=self._config.max_prompt_tokens)
        head = ReplyHead(
            completion_id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(self._clock().timestamp()),
            release=release,
            num_prompt_tokens=len(prompt),
            settings=settings,
            wants_logprobs=bool(body.logprobs),
        )
        pieces = self._engine.reply(
            release,
            prompt,
            settings=settings,
            is_streamed=bool(body.stream),
            num_likeliest=body.top_logprobs or 0,
        )
        if body.stream:
            return await streamed(pieces, form=head, release=release, wants_usage=body.wants_usage_chunk)
        piece, result = await whole(pieces, request=request)
        return JSONResponse(head.completion(piece, result=result), headers=headers_of(release))
