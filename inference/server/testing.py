"""A stand-in for `vllm serve`: its documented routes and shapes over real HTTP, answered by transformers.

For machines without a GPU, where vLLM cannot be installed: `python -m inference.server.testing DIRECTORY
--port PORT --served-model-name NAME`. Shapes and behaviour follow vLLM's manual and its
`entrypoints/openai/serving_completion.py`. What tandem does not use is not here.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from inference.continuous import NextToken
from inference.errors import ModelFailed
from inference.model import LoadedModel, load_model
from inference.server.scheduler import Scheduler
from inference.server.work import StreamPiece, Work
from registry.records import GenerationSettings


class StandInRequest(BaseModel):
    """The fields of vLLM's `CompletionRequest` that tandem sends."""

    model: str
    prompt: list[int] = Field(min_length=1)
    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    stream: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    return_tokens_as_token_ids: bool = False
    stop_token_ids: list[int] = []
    skip_special_tokens: bool = True
    add_special_tokens: bool = True


def make_stand_in(loaded: LoadedModel, *, name: str, key: str) -> FastAPI:
    """The application: one model under one name, `/v1` behind the key."""
    scheduler = Scheduler(max_running=16, max_tokens=32_768)
    app = FastAPI(docs_url=None, redoc_url=None)

    ending_at = lru_cache(maxsize=8)(partial(_ending_at, loaded))

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "")
        if request.url.path.startswith("/v1") and not hmac.compare_digest(given, f"Bearer {key}"):
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        return await call_next(request)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm"}
        more = {"root": str(loaded.directory), "parent": None, "max_model_len": loaded.max_positions}
        return {"object": "list", "data": [entry | more]}

    @app.post("/v1/completions")
    async def completions(body: StandInRequest) -> Response:
        if refusal := _refusal(body, name=name, max_positions=loaded.max_positions):
            return refusal
        model = ending_at(frozenset(body.stop_token_ids))
        return StreamingResponse(
            _events(body, model=model, scheduler=scheduler), media_type="text/event-stream"
        )

    return app


def _ending_at(loaded: LoadedModel, stops: frozenset[int]) -> LoadedModel:
    return replace(loaded, stop_token_ids=stops | {loaded.tokenizer.eos_token_id})


def _refusal(body: StandInRequest, *, name: str, max_positions: int) -> Response | None:
    if body.model != name:
        return _error(404, message=f"The model `{body.model}` does not exist.", kind="NotFoundError")
    if len(body.prompt) + body.max_tokens > max_positions:
        message = f"This model's maximum context length is {max_positions} tokens."
        return _error(400, message=message, kind="BadRequestError")
    if not (body.stream and body.return_tokens_as_token_ids and body.logprobs is not None):
        return _error(400, message="The stand-in streams token ids with logprobs.", kind="BadRequestError")
    return None


async def _events(body: StandInRequest, *, model: LoadedModel, scheduler: Scheduler) -> AsyncIterator[bytes]:
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[StreamPiece | Exception]()

    def put(piece: StreamPiece | Exception) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    work = Work(
        model,
        release_id=body.model,
        prompt=tuple(body.prompt),
        settings=GenerationSettings(
            max_new_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, seed=body.seed
        ),
        put=put,
        is_streamed=True,
        num_likeliest=body.logprobs or 0,
    )
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    scheduler.submit(work)
    try:
        while True:
            piece = await pieces.get()
            choice = _choice(piece)
            yield b"data: " + json.dumps(head | {"model": body.model, "choices": [choice]}).encode() + b"\n\n"
            if choice["finish_reason"]:
                break
        yield b"data: [DONE]\n\n"
    finally:
        work.is_unwanted.set()


def _choice(piece: StreamPiece | Exception) -> dict[str, Any]:
    """One delta. Logits that are not finite come as a token whose log-probability is null."""
    common = {"index": 0, "stop_reason": None, "prompt_token_ids": None, "token_ids": None}
    if isinstance(piece, ModelFailed):
        nothing = {
            "text_offset": [0],
            "tokens": ["token_id:0"],
            "token_logprobs": [None],
            "top_logprobs": [None],
        }
        return common | {"text": "!", "logprobs": nothing, "finish_reason": "length"}
    if isinstance(piece, Exception):
        raise piece
    reason = None if piece.result is None else piece.result.finish_reason
    return common | {"text": piece.text, "logprobs": _logprobs(piece.tokens), "finish_reason": reason}


def _logprobs(tokens: Sequence[NextToken]) -> dict[str, Any]:
    """Parallel lists; the chosen token is told first among the likeliest, one more than asked."""
    return {
        "text_offset": [0] * len(tokens),
        "tokens": [f"token_id:{token.token_id}" for token in tokens],
        "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
        "top_logprobs": [
            {f"token_id:{token.token_id}": max(token.logprob, -9999.0)}
            | {f"token_id:{one.token_id}": max(one.logprob, -9999.0) for one in token.likeliest}
            for token in tokens
        ],
    }


def _error(status_code: int, *, message: str, kind: str) -> JSONResponse:
    body = {"error": {"message": message, "type": kind, "param": None, "code": status_code}}
    return JSONResponse(body, status_code=status_code)


def main(arguments: Sequence[str]) -> int:
    """Serve until told to stop. Options of vLLM that change nothing here are passed over."""
    parser = argparse.ArgumentParser(prog="python -m inference.server.testing", allow_abbrev=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    options, _others = parser.parse_known_args(arguments)
    loaded = load_model(options.model, device="cpu", num_threads=1, verify_files=False)
    app = make_stand_in(loaded, name=options.served_model_name, key=os.environ["VLLM_API_KEY"])
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
