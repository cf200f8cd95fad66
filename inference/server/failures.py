"""Errors as OpenAI clients read them: a status and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from inference.errors import (
    EngineDown,
    ModelError,
    ModelFailed,
    NoActiveRelease,
    OutOfMemory,
    Overloaded,
    PromptTooLong,
    ReleaseError,
    RequestRefused,
)
from registry.errors import TandemError
from registry.records import Record

RETRY_SECONDS = "1"
# The first class that fits decides; a model error while rendering is the conversation's fault.
STATUSES: tuple[tuple[type[TandemError], int, str], ...] = (
    (NoActiveRelease, 503, "no_active_release"),
    (Overloaded, 503, "overloaded"),
    (EngineDown, 503, "engine_unavailable"),
    (OutOfMemory, 503, "out_of_memory"),
    (ModelFailed, 500, "model_failed"),
    (PromptTooLong, 400, "context_length_exceeded"),
    (ReleaseError, 422, "release_unusable"),
    (ModelError, 400, "invalid_conversation"),
)


class ErrorDetail(Record):
    """What went wrong, in words and by name."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Record):
    """The body of every error."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be met as it is."},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot answer now."},
}


def error_body(
    message: str, *, status_code: int, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The body of an error answer."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    kind = kinds.get(status_code, "invalid_request_error" if status_code < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an error; one that was not foreseen tells nothing of the inside."""
    if isinstance(error, RequestRefused):
        return error.status_code, error_body(
            str(error), status_code=error.status_code, code=error.code, param=error.param
        )
    for kind, status_code, code in STATUSES:
        if isinstance(error, kind):
            return status_code, error_body(str(error), status_code=status_code, code=code)
    message = str(error) if isinstance(error, TandemError) else "The server failed. Its log says why."
    return 500, error_body(message, status_code=500, code="internal_error")


def error_response(error: Exception) -> JSONResponse:
    """The answer to a request that raised `error`."""
    status_code, body = describe(error)
    headers = {"Retry-After": RETRY_SECONDS} if status_code == 503 else {}
    if status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=status_code, headers=headers)


def install_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's form, FastAPI's own included."""
    app.add_exception_handler(TandemError, _on_tandem_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_tandem_error(_request: Request, error: Exception) -> JSONResponse:
    return error_response(error)


async def _on_invalid_request(_request: Request, error: Exception) -> JSONResponse:
    problem = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": ""}
    place = ".".join(map(str, problem["loc"][1:]))
    message = f"{place}: {problem['msg']}" if place else str(problem["msg"])
    return JSONResponse(error_body(message, status_code=400, param=place or None), status_code=400)


async def _on_http_exception(_request: Request, error: Exception) -> JSONResponse:
    status_code = error.status_code if isinstance(error, HTTPException) else 500
    message = str(error.detail) if isinstance(error, HTTPException) else "The server failed."
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse(error_body(message, status_code=status_code), status_code, headers)
