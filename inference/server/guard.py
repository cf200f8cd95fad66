"""What surrounds every request: its id, its size, the release header, one log line, and no bare failure."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.server.failures import error_body, error_response
from inference.server.metrics import Metrics
from registry.serving import RELEASE_HEADER

logger = logging.getLogger(__name__)
REQUEST_ID_HEADER = "X-Request-Id"
NO_RELEASE = "none"
OTHER_ROUTES = "other"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_FOREIGN = "Without a key this server answers only who asks for it by a name of this machine, as 127.0.0.1."
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestGuard:
    """ASGI middleware. Written at this level because a wrapper of responses would break streaming."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        active_release_id: Callable[[], str | None],
        metrics: Metrics,
        is_open: bool = False,
    ) -> None:
        self._app = app
        self._is_open = is_open
        self._max_body_bytes = max_body_bytes
        self._active_release_id = active_release_id
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began = _request_id(Headers(scope=scope)), time.monotonic()
        answer = _Answer(send, request_id=request_id, active_release_id=self._active_release_id)
        try:
            await self._answer(scope, receive, answer.send)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if not answer.status_code:
                await error_response(error)(scope, receive, answer.send)
        logger.info("%s %s %r %s", request_id, scope["method"], scope["path"], answer.status_code)
        route = getattr(scope.get("route"), "path", OTHER_ROUTES)
        self._metrics.count_request(route, status=answer.status_code, seconds=time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._is_open and not _is_from_here(headers):
            body = error_body(_FOREIGN, status_code=403, code="foreign_host")
            await JSONResponse(body, status_code=403)(scope, receive, send)
            return
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            body = error_body(self._too_large, status_code=413, code="body_too_large")
            await JSONResponse(body, status_code=413)(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                # FastAPI lets this one kind of error through while it reads a body.
                raise HTTPException(413, self._too_large)
            return message

        return limited

    @property
    def _too_large(self) -> str:
        return f"The body is larger than {self._max_body_bytes} bytes."


class _Answer:
    """Adds the headers as the answer starts, and remembers its status (0 until then)."""

    def __init__(self, send: Send, *, request_id: str, active_release_id: Callable[[], str | None]) -> None:
        self._send = send
        self._request_id = request_id
        self._active_release_id = active_release_id
        self.status_code = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status_code = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self._request_id
            headers.setdefault(RELEASE_HEADER, self._active_release_id() or NO_RELEASE)
        await self._send(message)


def _is_from_here(headers: Headers) -> bool:
    """Whether a request names this machine as its host, and comes from no page of another.

    A web page can have its own name point at loopback (DNS rebinding) and ask with its visitor's browser; it
    cannot change the two headers that tell so.
    """
    origin = headers.get("origin")
    return _is_loopback_name(headers.get("host", "")) and (
        origin is None or _is_loopback_name(origin.partition("://")[2])
    )


def _is_loopback_name(place: str) -> bool:
    name = place.rsplit(":", 1)[0] if not place.endswith("]") else place
    return name.lower() in LOOPBACK_NAMES


def _request_id(headers: Headers) -> str:
    """The client's own id if it is fit for a header and a log line, or a fresh one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
