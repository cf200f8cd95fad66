"""One question to an HTTP server and its answer, by the standard library.

The gate of another host begins anew with every deployment, so what it imports is time that each one waits;
a client library with its own imports took a third of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 16_000_000


@dataclass(frozen=True)
class Question:
    """What to ask; `seconds` is how long any part of the answer may take."""

    method: str
    url: str
    seconds: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """What came back; names of headers in lower case."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class SlowAnswer(OSError):
    """The server took the question and did not answer in time."""


Exchange = Callable[[Question], Answer]


def exchange_over_http(question: Question) -> Answer:
    """Ask once over a connection of its own, by no proxy and following nothing.

    Raises `SlowAnswer`, any other `OSError` where the server cannot be reached, `ValueError` for what is no
    URL.
    """
    parts = urlsplit(question.url)
    if parts.scheme != "http" or parts.hostname is None:
        raise ValueError(f"{question.url!r} is no http address")
    seconds = min(CONNECT_SECONDS, question.seconds)
    connection = HTTPConnection(parts.hostname, port=parts.port, timeout=seconds)
    try:
        connection.connect()
        connection.sock.settimeout(question.seconds)
        return _answer(connection, question, path=parts.path or "/")
    except HTTPException as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def _answer(connection: HTTPConnection, question: Question, *, path: str) -> Answer:
    try:
        connection.request(question.method, path, body=question.body, headers=dict(question.headers))
        response = connection.getresponse()
        content = response.read(MAX_ANSWER_BYTES)
    except TimeoutError as error:
        raise SlowAnswer(str(error)) from error
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, content=content, headers=headers)
