"""The inference server as a deployer sees it."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import httpx
from pydantic import ValidationError

from deploy.errors import ServerFailed
from registry.records import Record
from registry.serving import RELEASE_HEADER, ServerHealth, SetActiveAnswer, SetActiveRequest

R = TypeVar("R", bound=Record)

# A server that lives says so at once; loading a release and answering a prompt may take long.
CONNECT_TIMEOUT_SECONDS = 5.0
HEALTH_TIMEOUT_SECONDS = 10.0


class ServingDoor(Protocol):
    """What a deployer asks of a server. These three: what do you serve, serve this, and show me."""

    def health(self) -> ServerHealth:
        """What it serves; `ServerFailed` where it cannot be reached."""

    def set_active(self, release_id: str) -> SetActiveAnswer:
        """Load a release beside the served one, try it, swap; `ServerFailed` with its reason."""

    def probe(self, prompt: str, *, release_id: str) -> str:
        """Its answer to a prompt through the public door; `ServerFailed` unless that release gave it."""


class HttpDoor:
    """A server over HTTP. The admin key never shows in a repr or a message."""

    def __init__(
        self,
        url: str,
        *,
        admin_key: str,
        timeout_seconds: float,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._headers = {"Authorization": f"Bearer {admin_key}"}
        self._transport = transport

    def __repr__(self) -> str:
        return f"HttpDoor({self._url})"

    def health(self) -> ServerHealth:
        """`GET /health`, without the key."""
        seconds = min(HEALTH_TIMEOUT_SECONDS, self._timeout_seconds)
        return self._parse(ServerHealth, answer=self._call("GET", "/health", seconds=seconds))

    def set_active(self, release_id: str) -> SetActiveAnswer:
        """`POST /models/set_active`."""
        request = SetActiveRequest(release_id=release_id)
        answer = self._parse(
            SetActiveAnswer,
            answer=self._call("POST", "/models/set_active", json=request.model_dump(), headers=self._headers),
        )
        if answer.release_id != release_id:
            raise ServerFailed(f"Asked to serve {release_id}, the server now serves {answer.release_id}.")
        return answer

    def probe(self, prompt: str, *, release_id: str) -> str:
        """`POST /v1/chat/completions`."""
        body = {
            "model": release_id,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 32,
            "temperature": 0,
        }
        answer = self._call("POST", "/v1/chat/completions", json=body, headers=self._headers)
        answered_by = answer.headers.get(RELEASE_HEADER)
        if answered_by != release_id:
            raise ServerFailed(f"The probe was answered by {answered_by}, not by {release_id}.")
        try:
            content = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise ServerFailed(f"The probe of {release_id} got no completion: {answer.text[:200]}") from None
        if not isinstance(content, str):
            raise ServerFailed(f"The probe of {release_id} got no text: {content!r}")
        return content

    def _call(
        self, method: str, path: str, *, seconds: float | None = None, **options: Any
    ) -> httpx.Response:
        timeout = httpx.Timeout(
            self._timeout_seconds if seconds is None else seconds, connect=CONNECT_TIMEOUT_SECONDS
        )
        try:
            # The environment may name a proxy: a key meant for our own server would travel through it.
            with httpx.Client(transport=self._transport, timeout=timeout, trust_env=False) as client:
                answer = client.request(method, self._url + path, **options)
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            raise ServerFailed(
                f"The inference server at {self._url} did not answer {path} in {timeout.read:g} s.",
                remedy="Raise TANDEM_DEPLOYMENT__TIMEOUT_SECONDS if its model takes longer to load.",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerFailed(
                f"The inference server at {self._url} cannot be reached: {error}.",
                remedy="`tandem status` shows whether it is up.",
            ) from None
        if not answer.is_success:
            is_refused_key = answer.status_code in (401, 403)
            raise ServerFailed(
                f"The inference server refused {path} ({answer.status_code}): {_reason(answer)}",
                remedy="Both sides need the same admin key." if is_refused_key else "",
            )
        return answer

    def _parse(self, kind: type[R], *, answer: httpx.Response) -> R:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise ServerFailed(
                f"{self._url} is no tandem inference server, or of another version: {error}"
            ) from None


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
