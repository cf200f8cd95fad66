"""What every door of generation does: check, generate, answer whole or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import StreamingResponse

from inference.errors import PromptTooLong, RequestRefused, ServerError
from inference.generation import Generated
from inference.server.failures import describe
from inference.server.protocol import MODEL_ALIASES
from inference.server.replies import DONE, event
from inference.server.swap import ServedRelease
from inference.server.work import StreamPiece
from registry.serving import RELEASE_HEADER

logger = logging.getLogger(__name__)
Pieces = AsyncGenerator[StreamPiece]
DISCONNECT_SECONDS = 0.2
EVENTS = "text/event-stream"
# For the schema: what a client gets that asks for a stream.
STREAMED_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "One object; with `stream`, its pieces as events.", "content": {EVENTS: {}}}
}


class StreamForm(Protocol):
    """How a stream of one kind of answer looks: its beginning, its text, its end, its counts."""

    @property
    def completion_id(self) -> str:
        """Names the answer, in the log too."""

    def role_chunk(self) -> bytes | None:
        """The first event, if there is one before the text."""

    def text_chunk(self, piece: StreamPiece) -> bytes | None:
        """The next text; None where there is nothing to tell."""

    def end_chunk(self, result: Generated) -> bytes:
        """Why the reply ended."""

    def usage_chunk(self, result: Generated) -> bytes:
        """Token counts."""


def check_model(name: str, *, release: ServedRelease) -> None:
    """A client that names a release gets that one or none; an alias gets whichever is active."""
    if name not in (release.release_id, *MODEL_ALIASES):
        raise RequestRefused(
            f"The model {name!r} is not served; {release.release_id!r} is.",
            remedy=f"Ask for it, or for {MODEL_ALIASES[0]!r}, which is always the active release.",
            status_code=404,
            code="model_not_found",
            param="model",
        )


def check_length(prompt: tuple[int, ...], *, max_prompt_tokens: int) -> None:
    """`PromptTooLong` for more than the server reads."""
    if len(prompt) > max_prompt_tokens:
        raise PromptTooLong(
            f"The prompt has {len(prompt)} tokens; this server reads {max_prompt_tokens}.",
            remedy="Shorten the conversation.",
        )


def headers_of(release: ServedRelease) -> dict[str, str]:
    """Which release answers."""
    return {RELEASE_HEADER: release.release_id}


async def whole(pieces: Pieces, *, request: Request) -> tuple[StreamPiece, Generated]:
    """The one piece of an answer that is not streamed. The client may leave; that ends the generation."""
    async with aclosing(pieces):
        coming: asyncio.Future[StreamPiece] = asyncio.ensure_future(anext(pieces))
        while not (await asyncio.wait([coming], timeout=DISCONNECT_SECONDS))[0]:
            if await request.is_disconnected():
                coming.cancel()
                raise RequestRefused("The client left.", status_code=499)
        piece = coming.result()
    if piece.result is None:
        raise ServerError("The generation ended without a result.")
    return piece, piece.result


async def streamed(
    pieces: Pieces, *, form: StreamForm, release: ServedRelease, wants_usage: bool
) -> StreamingResponse:
    """A stream of events. Errors before the first token are raised, so that they have their own status."""
    first = await anext(pieces)
    events = _events(_chained(first, pieces), pieces=pieces, form=form, wants_usage=wants_usage)
    headers = headers_of(release) | {"Cache-Control": "no-cache"}
    return StreamingResponse(events, media_type=EVENTS, headers=headers)


async def _chained(first: StreamPiece, rest: Pieces) -> AsyncIterator[StreamPiece]:
    yield first
    if first.result is None:
        async for piece in rest:
            yield piece


async def _events(
    chained: AsyncIterator[StreamPiece], *, pieces: Pieces, form: StreamForm, wants_usage: bool
) -> AsyncIterator[bytes]:
    async with aclosing(pieces):
        try:
            if (opening := form.role_chunk()) is not None:
                yield opening
            async for piece in chained:
                if (chunk := form.text_chunk(piece)) is not None:
                    yield chunk
                if piece.result is not None:
                    yield form.end_chunk(piece.result)
                    if wants_usage:
                        yield form.usage_chunk(piece.result)
        except Exception as error:
            # The status is sent already: what failed can only be told inside the stream.
            logger.exception("stream %s failed", form.completion_id)
            yield event(describe(error)[1])
        yield DONE
