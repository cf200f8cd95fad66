"""The contract of every door, then the one over HTTP against scripted answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.door import HttpDoor, ServingDoor
from deploy.errors import ServerDown, ServerFailed
from deploy.exchange import Answer, Question, SlowAnswer
from deploy.testing import FakeDoor, FakeTarget
from registry.serving import RELEASE_HEADER
from registry.testing import START

KEY = "sk-very-secret-admin-key"
OTHER, RELEASE = "r000001-aaaaaaaa", "r000002-bbbbbbbb"
HEALTH: dict[str, Any] = {
    "status": "ok",
    "release_id": RELEASE,
    "weights_sha256": "0" * 64,
    "loaded_at": "2026-01-01T12:00:00Z",
    "num_requests": 1,
    "num_errors": 0,
    "num_waiting": 0,
    "uptime_seconds": 2.5,
}
ACTIVATED = {
    "release_id": RELEASE,
    "weights_sha256": "0" * 64,
    "previous_release_id": None,
    "loaded_at": "2026-01-01T12:00:00Z",
}
COMPLETION = {"choices": [{"message": {"role": "assistant", "content": "yes"}}]}
Handler = Callable[[httpx.Request], httpx.Response]


def door(handler: Handler) -> HttpDoor:
    def exchange(asked: Question) -> Answer:
        answer = handler(
            httpx.Request(asked.method, asked.url, headers=dict(asked.headers), content=asked.body)
        )
        return Answer(answer.status_code, content=answer.content, headers=dict(answer.headers))

    return HttpDoor("http://server:8765", admin_key=KEY, timeout_seconds=30, exchange=exchange)


def answering(body: object, *, status: int = 200, release: str | None = RELEASE) -> HttpDoor:
    headers = {} if release is None else {RELEASE_HEADER: release}
    return door(lambda _: httpx.Response(status, json=body, headers=headers))


CALLS: list[Callable[[HttpDoor], object]] = [
    lambda it: it.health(),
    lambda it: it.set_active(RELEASE),
    lambda it: it.probe("Say yes.", release_id=RELEASE),
]


# Contract of every door: the fake one, and the real one over HTTP with a fake server behind it.


@pytest.fixture
def server(seal: Callable[..., Path]) -> FakeDoor:
    target = FakeTarget()
    for number, name in enumerate((OTHER, RELEASE)):
        target.push(seal(name, weights=bytes([number])), release_id=name)
    return FakeDoor(target, now=START)


@pytest.fixture(params=["fake", "http"])
def any_door(request: pytest.FixtureRequest, server: FakeDoor) -> ServingDoor:
    return server if request.param == "fake" else door(lambda asked: answer_from(server, asked))


def answer_from(server: FakeDoor, asked: httpx.Request) -> httpx.Response:
    if server.is_down:
        raise ConnectionRefusedError("refused")
    body = json.loads(asked.content) if asked.content else {}
    try:
        if asked.url.path == "/health":
            return httpx.Response(200, text=server.health().model_dump_json())
        if asked.url.path == "/models/set_active":
            return httpx.Response(200, text=server.set_active(body["release_id"]).model_dump_json())
        text = server.probe(body["messages"][0]["content"], release_id=body["model"])
    except ServerFailed as error:
        return httpx.Response(422, json={"error": {"message": str(error)}})
    completion = {"choices": [{"message": {"content": text}}]}
    return httpx.Response(200, json=completion, headers={RELEASE_HEADER: body["model"]})


def test_a_door_tells_what_is_served_and_swaps_it(any_door: ServingDoor) -> None:
    assert (any_door.health().status, any_door.health().release_id) == ("waiting", None)
    assert any_door.set_active(OTHER).previous_release_id is None
    answer = any_door.set_active(RELEASE)
    assert (answer.release_id, answer.previous_release_id) == (RELEASE, OTHER)
    health = any_door.health()
    assert (health.status, health.release_id, health.weights_sha256) == ("ok", RELEASE, answer.weights_sha256)


def test_a_release_that_cannot_be_loaded_leaves_the_served_one(
    any_door: ServingDoor, server: FakeDoor
) -> None:
    any_door.set_active(OTHER)
    server.refuses.add(RELEASE)
    for name in (RELEASE, "r000009-99999999"):
        with pytest.raises(ServerFailed, match="cannot be loaded"):
            any_door.set_active(name)
    assert any_door.health().release_id == OTHER


def test_a_probe_is_answered_by_the_served_release_only(any_door: ServingDoor, server: FakeDoor) -> None:
    any_door.set_active(RELEASE)
    assert any_door.probe("Say yes.", release_id=RELEASE) == "Say yes."
    with pytest.raises(ServerFailed):
        any_door.probe("Say yes.", release_id=OTHER)
    server.mute.add(RELEASE)
    with pytest.raises(ServerFailed):
        any_door.probe("Say yes.", release_id=RELEASE)


def test_a_door_whose_server_is_down_says_so(any_door: ServingDoor, server: FakeDoor) -> None:
    server.is_down = True
    calls: list[Callable[[], object]] = [
        any_door.health,
        lambda: any_door.set_active(RELEASE),
        lambda: any_door.probe("Say yes.", release_id=RELEASE),
    ]
    for call in calls:
        with pytest.raises(ServerFailed, match="cannot be reached"):
            call()


# The real one against scripted answers.


def test_each_call_asks_what_the_server_promises_to_answer() -> None:
    seen: list[tuple[str, str, object, bool]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        is_admin = request.headers.get("authorization") == f"Bearer {KEY}"
        seen.append((request.method, request.url.path, body, is_admin))
        answers = {"/health": HEALTH, "/models/set_active": ACTIVATED, "/v1/chat/completions": COMPLETION}
        return httpx.Response(200, json=answers[request.url.path], headers={RELEASE_HEADER: RELEASE})

    it = door(handle)
    assert it.health().release_id == RELEASE
    assert it.set_active(RELEASE).previous_release_id is None
    assert it.probe("Say yes.", release_id=RELEASE) == "yes"
    question = {
        "model": RELEASE,
        "messages": [{"role": "user", "content": "Say yes."}],
        "max_tokens": 32,
        "temperature": 0,
    }
    assert seen == [
        ("GET", "/health", None, False),
        ("POST", "/models/set_active", {"release_id": RELEASE}, True),
        ("POST", "/v1/chat/completions", question, True),
    ]


def test_a_server_that_serves_nothing_yet_is_healthy_enough_to_ask() -> None:
    body = HEALTH | {"status": "waiting", "release_id": None, "weights_sha256": None, "loaded_at": None}
    assert answering(body).health().release_id is None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("refused"), TimeoutError("t"), ConnectionResetError("r"), OSError()]
)
def test_a_server_that_cannot_be_reached_is_named_with_a_remedy(
    call: Callable[[HttpDoor], object], error: OSError
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(ServerFailed, match="http://server:8765 cannot be reached") as caught:
        call(door(fail))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("error", "is_down"),
    [
        (ConnectionRefusedError("refused"), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError("no answer"), False),
        (OSError("no route"), False),
        (SlowAnswer("too slow"), False),
    ],
)
def test_a_server_that_is_down_is_told_from_one_that_cannot_be_asked(error: OSError, is_down: bool) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(ServerFailed) as caught:
        door(fail).health()
    assert isinstance(caught.value, ServerDown) is is_down


def test_a_server_that_does_not_answer_in_time_is_told_apart() -> None:
    def stall(_: httpx.Request) -> httpx.Response:
        raise SlowAnswer("too slow")

    with pytest.raises(ServerFailed, match=r"did not answer /models/set_active in 30 s") as caught:
        door(stall).set_active(RELEASE)
    assert "TANDEM_DEPLOYMENT__TIMEOUT_SECONDS" in caught.value.remedy
    with pytest.raises(ServerFailed, match=r"did not answer /health in 10 s"):
        door(stall).health()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [302, 400, 401, 404, 422, 500, 503])
def test_any_answer_but_success_is_a_failure_with_the_servers_reason(
    call: Callable[[HttpDoor], object], status: int
) -> None:
    with pytest.raises(ServerFailed, match=rf"\({status}\): Release is broken\."):
        call(answering({"error": {"message": "Release is broken."}}, status=status))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b"[1]", b"null", b"\xff"])
def test_a_success_that_says_nothing_is_no_success(
    call: Callable[[HttpDoor], object], content: bytes
) -> None:
    it = door(lambda _: httpx.Response(200, content=content, headers={RELEASE_HEADER: RELEASE}))
    with pytest.raises(ServerFailed):
        call(it)


def test_a_refused_key_is_told_without_the_key() -> None:
    with pytest.raises(ServerFailed, match="same admin key") as caught:
        answering({"error": {"message": "The API key is wrong."}}, status=401).set_active(RELEASE)
    assert KEY not in str(caught.value) + repr(caught.value)


def test_the_key_shows_in_no_repr() -> None:
    assert repr(answering(HEALTH)) == "HttpDoor(http://server:8765)"


def test_a_server_that_serves_another_release_than_asked_failed() -> None:
    with pytest.raises(ServerFailed, match="now serves r000001-aaaaaaaa"):
        answering(ACTIVATED | {"release_id": "r000001-aaaaaaaa"}).set_active(RELEASE)


@pytest.mark.parametrize("release", [None, "r000001-aaaaaaaa"])
def test_a_probe_that_another_release_answered_fails(release: str | None) -> None:
    with pytest.raises(ServerFailed, match=f"answered by {release}, not by {RELEASE}"):
        answering(COMPLETION, release=release).probe("Say yes.", release_id=RELEASE)


@pytest.mark.parametrize("content", [None, 5, ["yes"]])
def test_a_probe_that_got_no_text_fails(content: object) -> None:
    with pytest.raises(ServerFailed, match="got no text"):
        answering({"choices": [{"message": {"content": content}}]}).probe("Say yes.", release_id=RELEASE)


def test_an_empty_reply_is_a_reply() -> None:
    body = {"choices": [{"message": {"content": ""}}]}
    assert answering(body).probe("Say yes.", release_id=RELEASE) == ""


def test_a_url_that_is_none_is_an_error_of_ours() -> None:
    with pytest.raises(ServerFailed, match="cannot be reached"):
        HttpDoor("http://[::1:8765", admin_key=KEY, timeout_seconds=1).health()
