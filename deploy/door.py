"""The inference server as a deployer sees it."""

from __future__ import annotations

import json
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from deploy.errors import ServerDown, ServerFailed
from deploy.exchange import Answer, Exchange, Question, SlowAnswer, exchange_over_http
from registry.serving import RELEASE_HEADER, ServerHealth, SetActiveAnswer, SetActiveRequest
from registry.values import Record

R = TypeVar("R", bound=Record)

# A server that lives says so at once; loading a release and answering a prompt may take long.
HEALTH_TIMEOUT_SECONDS = 10.0


class ServingDoor(Protocol):
    """What a deployer asks of a server. These three: what do you serve, serve this, and show me."""

    def health(self) -> ServerHealth:
        """What it serves; `ServerDown` where nobody listens, `ServerFailed` where it cannot be asked."""

    def set_active(self, release_id: str) -> SetActiveAnswer:
        """Load a release beside the served one, try it, swap; `ServerFailed` with its reason."""

    def probe(self, prompt: str, *, release_id: str) -> str:
        """Its answer to a prompt through the public door; `ServerFailed` unless that release gave it."""


class HttpDoor:
    """A server over HTTP. The admin key never shows in a repr or a message."""

    def __init__(
        self, url: str, *, admin_key: str, timeout_seconds: float, exchange: Exchange = exchange_over_http
    ) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._key = admin_key
        self._exchange = exchange

    def __repr__(self) -> str:
        return f"HttpDoor({self._url})"

    def health(self) -> ServerHealth:
        """`GET /health`, without the key."""
        question = Question(
            "GET", url=f"{self._url}/health", seconds=min(HEALTH_TIMEOUT_SECONDS, self._timeout_seconds)
        )
        return self._parse(ServerHealth, answer=self._ask(question, path="/health"))

    def set_active(self, release_id: str) -> SetActiveAnswer:
        """`POST /models/set_active`."""
        request = SetActiveRequest(release_id=release_id)
        answer = self._parse(
            SetActiveAnswer, answer=self._post("/models/set_active", body=request.model_dump())
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
        answer = self._post("/v1/chat/completions", body=body)
        answered_by = answer.headers.get(RELEASE_HEADER.lower())
        if answered_by != release_id:
            raise ServerFailed(f"The probe was answered by {answered_by}, not by {release_id}.")
        try:
            content = json.loads(answer.content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise ServerFailed(
                f"The probe of {release_id} got no completion: {_text(answer)[:200]}"
            ) from None
        if not isinstance(content, str):
            raise ServerFailed(f"The probe of {release_id} got no text: {content!r}")
        return content

    def _post(self, path: str, *, body: dict[str, Any]) -> Answer:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        question = Question(
            "POST",
            url=self._url + path,
            seconds=self._timeout_seconds,
            headers=headers,
            body=json.dumps(body).encode(),
        )
        return self._ask(question, path=path)

    def _ask(self, question: Question, *, path: str) -> Answer:
        try:
            answer = self._exchange(question)
        except SlowAnswer:
            raise ServerFailed(
                f"The inference server at {self._url} did not answer {path} in {question.seconds:g} s.",
                remedy="Raise TANDEM_DEPLOYMENT__TIMEOUT_SECONDS if its model takes longer to load.",
            ) from None
        except (OSError, ValueError) as error:
            kind = ServerDown if isinstance(error, ConnectionError) else ServerFailed
            raise kind(
                f"The inference server at {self._url} cannot be reached: {error or type(error).__name__}.",
                remedy="`tandem status` shows whether it is up.",
            ) from None
        if not 200 <= answer.status < 300:
            is_refused_key = answer.status in (401, 403)
            raise ServerFailed(
                f"The inference server refused {path} ({answer.status}): {_reason(answer)}",
                remedy="Both sides need the same admin key." if is_refused_key else "",
            )
        return answer

    def _parse(self, kind: type[R], *, answer: Answer) -> R:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise ServerFailed(
                f"{self._url} is no tandem inference server, or of another version: {error}"
            ) from None


def _reason(answer: Answer) -> str:
    try:
        return str(json.loads(answer.content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return _text(answer)[:300]


def _text(answer: Answer) -> str:
    return answer.content.decode("utf-8", errors="replace")
