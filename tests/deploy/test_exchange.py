"""One question over HTTP, asked of a real server on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deploy.exchange import Question, SlowAnswer, exchange_over_http

pytestmark = pytest.mark.integration


class Handler(BaseHTTPRequestHandler):
    """`/echo` gives body and key back, `/away` leads elsewhere, `/never` says nothing."""

    def do_GET(self) -> None:
        if self.path == "/never":
            self.server.released.wait(10)  # type: ignore[attr-defined]
            return
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("X-Tandem-Release", "r1")
        self.send_header("Location", "/echo")
        self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.wfile.write(body + self.headers.get("Authorization", "none").encode())

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_arguments: object) -> None:
        return


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_question_is_answered_with_status_body_and_headers(url: str) -> None:
    asked = Question("POST", url=f"{url}/echo", seconds=5, headers={"Authorization": "key"}, body=b"hi ")
    answer = exchange_over_http(asked)
    assert (answer.status, answer.content, answer.headers["x-tandem-release"]) == (200, b"hi key", "r1")


def test_no_proxy_of_the_environment_gets_to_see_the_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert exchange_over_http(Question("GET", url=f"{url}/echo", seconds=5)).content == b"none"


def test_nothing_that_leads_elsewhere_is_followed(url: str) -> None:
    assert exchange_over_http(Question("GET", url=f"{url}/away", seconds=5)).status == 302


def test_a_server_that_takes_too_long_is_told_from_one_that_is_away(url: str) -> None:
    with pytest.raises(SlowAnswer):
        exchange_over_http(Question("GET", url=f"{url}/never", seconds=0.1))
    with pytest.raises(ConnectionRefusedError):
        exchange_over_http(Question("GET", url="http://127.0.0.1:9/", seconds=5))


@pytest.mark.parametrize("url", ["http://[::1:8765", "ftp://host/", "nothing", "https://host/"])
def test_what_is_no_http_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http address|Invalid IPv6 URL"):
        exchange_over_http(Question("GET", url=url, seconds=1))


def test_the_key_shows_in_no_repr() -> None:
    asked = Question("GET", url="http://host/", seconds=1, headers={"Authorization": "Bearer secret"})
    assert "secret" not in repr(asked)
