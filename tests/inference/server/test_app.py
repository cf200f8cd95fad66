from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from inference.server.config import ServerConfig
from registry.serving import ServerHealth

ADMIN = {"Authorization": "Bearer admin-key-of-the-tests"}
READER = {"Authorization": "Bearer read-key-of-the-tests"}
HELLO = {"model": "tandem", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
Serve = Callable[[ServerConfig], Any]


def chat(client: TestClient, **fields: object) -> Any:
    return client.post("/v1/chat/completions", json=HELLO | fields)


def error_of(answer: Any) -> dict[str, Any]:
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = answer.json()["error"]
    return error


def events(answer: Any) -> Iterator[Any]:
    for line in answer.text.split("\n\n"):
        if line:
            payload = line.removeprefix("data: ")
            yield payload if payload == "[DONE]" else json.loads(payload)


def health(client: TestClient) -> ServerHealth:
    return ServerHealth.model_validate_json(client.get("/health").content)


def test_the_current_release_is_restored_and_answers(client: TestClient) -> None:
    answer = chat(client)
    assert answer.status_code == 200
    body = answer.json()
    assert body["model"] == answer.headers["X-Tandem-Release"] == "release-1"
    assert body["system_fingerprint"] == f"fp_{str(health(client).weights_sha256)[:12]}"
    assert body["choices"][0]["finish_reason"] in ("stop", "length")
    assert 1 <= body["usage"]["completion_tokens"] <= 5
    assert body["usage"]["total_tokens"] == sum(
        body["usage"][key] for key in ("prompt_tokens", "completion_tokens")
    )


def test_a_stream_tells_the_same_reply_in_events(client: TestClient) -> None:
    whole = chat(client).json()
    answer = chat(client, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["X-Tandem-Release"] == "release-1"
    *chunks, last, done = events(answer)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {chunk["model"] for chunk in (*chunks, last)} == {"release-1"}
    assert done == "[DONE]"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_schema_says_that_an_answer_may_be_a_stream(client: TestClient, path: str) -> None:
    answers = client.get("/openapi.json").json()["paths"][path]["post"]["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}


def test_a_seed_repeats_a_sampled_reply(client: TestClient) -> None:
    first, second = (chat(client, temperature=1.5, seed=3).json()["choices"] for _ in range(2))
    assert first == second


def test_health_tells_the_served_release_and_counts(client: TestClient) -> None:
    chat(client)
    state = health(client)
    assert (state.status, state.release_id, state.problem) == ("ok", "release-1", "")
    assert (state.num_requests, state.num_errors, state.num_waiting) == (1, 0, 0)
    assert state.loaded_at is not None


def test_versions_are_told(client: TestClient) -> None:
    assert client.get("/version").json()["transformers"].startswith("5.")


def test_models_are_the_active_release_and_its_aliases(client: TestClient) -> None:
    entries = client.get("/v1/models").json()["data"]
    assert [(entry["id"], entry["root"]) for entry in entries] == [
        ("release-1", "release-1"),
        ("tandem", "release-1"),
        ("current", "release-1"),
    ]
    assert client.get("/v1/models/tandem").json()["id"] == "tandem"
    assert error_of(client.get("/v1/models/other"))["code"] == "model_not_found"


def test_another_model_than_the_active_one_is_not_passed_off(client: TestClient) -> None:
    answer = chat(client, model="release-2")
    assert answer.status_code == 404
    assert "'release-1' is" in error_of(answer)["message"]
    assert chat(client, model="release-1").status_code == 200


def test_without_a_release_the_server_waits_and_says_so(config: ServerConfig, serve: Serve) -> None:
    (config.releases_dir / "current").unlink()
    with serve(config) as client:
        answer = chat(client)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert error_of(answer)["message"].startswith("no release is active;")
        assert answer.headers["X-Tandem-Release"] == "none"
        assert health(client).status == "waiting"
        assert client.get("/v1/models").json()["data"] == []


def test_a_broken_current_is_told_and_mended_by_activating_another(
    config: ServerConfig, serve: Serve
) -> None:
    (config.releases_dir / "release-1" / "model.safetensors").write_bytes(b"")
    with serve(config) as client:
        state = health(client)
        assert state.status == "error"
        assert "model.safetensors has 0 bytes" in state.problem
        assert "cannot be served" in error_of(chat(client))["message"]
        answer = client.post("/models/set_active", json={"release_id": "release-2"}, headers=ADMIN)
        assert answer.json()["previous_release_id"] is None
        assert (health(client).status, health(client).problem) == ("ok", "")


def test_activating_a_release_swaps_it_in(client: TestClient) -> None:
    before = chat(client).json()
    answer = client.post("/models/set_active", json={"release_id": "release-2"}, headers=ADMIN)
    assert answer.status_code == 200
    assert (answer.json()["release_id"], answer.json()["previous_release_id"]) == ("release-2", "release-1")
    after = chat(client).json()
    assert (before["model"], after["model"]) == ("release-1", "release-2")
    assert before["system_fingerprint"] != after["system_fingerprint"]
    assert [entry["is_active"] for entry in client.get("/models").json()] == [False, True]


def test_activating_the_active_release_loads_nothing(client: TestClient) -> None:
    loaded_at = health(client).loaded_at
    answer = client.post("/models/set_active", json={"release_id": "release-1"}, headers=ADMIN)
    assert answer.status_code == 200
    assert health(client).loaded_at == loaded_at


@pytest.mark.parametrize("release_id", ["release-9", "current", "../x", "", 5])
def test_a_release_that_is_not_there_is_refused(client: TestClient, release_id: object) -> None:
    answer = client.post("/models/set_active", json={"release_id": release_id}, headers=ADMIN)
    assert answer.status_code in (400, 422)
    assert error_of(answer)["message"]
    assert health(client).release_id == "release-1"


def test_a_broken_release_leaves_the_old_one_serving(client: TestClient, config: ServerConfig) -> None:
    (config.releases_dir / "release-2" / "tokenizer.json").unlink()
    answer = client.post("/models/set_active", json={"release_id": "release-2"}, headers=ADMIN)
    assert (answer.status_code, error_of(answer)["code"]) == (422, "release_unusable")
    assert "tokenizer.json is missing" in error_of(answer)["message"]
    assert chat(client).json()["model"] == "release-1"
    assert (health(client).status, health(client).release_id) == ("ok", "release-1")
    assert "tokenizer.json is missing" in health(client).problem


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eA=="}])
def test_a_release_is_activated_by_the_admin_key_alone(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/models/set_active", json={"release_id": "release-2"}, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
    assert health(client).release_id == "release-1"


def test_with_a_read_key_questions_need_a_key_and_health_does_not(
    config_with_keys: ServerConfig, serve: Serve
) -> None:
    with serve(config_with_keys) as client:
        assert chat(client).status_code == 401
        assert client.get("/models").status_code == 401
        assert client.get("/v1/models", headers=ADMIN).status_code == 200
        assert client.post("/v1/chat/completions", json=HELLO, headers=READER).status_code == 200
        assert client.get("/health").status_code == 200


def test_the_read_key_does_not_activate(config_with_keys: ServerConfig, serve: Serve) -> None:
    with serve(config_with_keys) as client:
        answer = client.post("/models/set_active", json={"release_id": "release-2"}, headers=READER)
        assert (answer.status_code, error_of(answer)["type"]) == (403, "permission_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3}, "n"),
        ({"max_tokens": 33}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages.0.role"),
    ],
)
def test_a_wrong_request_names_its_field(client: TestClient, fields: dict[str, object], param: str) -> None:
    answer = chat(client, **fields)
    assert answer.status_code == 400
    assert (error_of(answer)["type"], error_of(answer)["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"messages": NaN}', b"null"])
def test_a_body_that_is_no_request_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post(
        "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_large_body_is_refused_declared_or_not(client: TestClient, is_declared: bool) -> None:
    body = json.dumps(HELLO | {"messages": [{"role": "user", "content": "x" * 5000}]}).encode()
    content = body if is_declared else iter([body[:3000], body[3000:]])
    answer = client.post(
        "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert "larger than 4096 bytes" in error_of(answer)["message"]


def test_a_long_prompt_is_refused(client: TestClient) -> None:
    answer = chat(client, messages=[{"role": "user", "content": "x" * 300}])
    assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/none", 404), ("GET", "/models/set_active", 405)]
)
def test_unknown_doors_are_errors_of_the_same_form(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)


def test_every_answer_bears_a_request_id_and_keeps_a_decent_one(client: TestClient) -> None:
    given = client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"]
    unfit = client.get("/none", headers={"X-Request-Id": "a b{}"}).headers["X-Request-Id"]
    assert given == "abc-1"
    assert len(unfit) == 32


def test_too_many_waiting_requests_are_turned_away(
    config: ServerConfig, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(config.changed(max_waiting=1)) as client:
        monkeypatch.setattr(client.app.state.engine, "_num_pending", 2)
        answer = chat(client)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "overloaded")


def test_an_unforeseen_failure_tells_nothing_of_the_inside(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(client.app.state.engine, "active", fail)
    answer = chat(client)
    assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_model_that_breaks_before_it_answers_has_its_own_status_streamed_or_not(
    client: TestClient, is_streamed: bool
) -> None:
    weight = client.app.state.engine.active().loaded.model.model.norm.weight
    weight[:] = float("nan")
    answer = chat(client, stream=is_streamed)
    assert answer.status_code == 500
    assert "not finite" in error_of(answer)["message"]


def test_a_model_that_breaks_while_it_answers_ends_the_stream_with_an_error(client: TestClient) -> None:
    head = client.app.state.engine.active().loaded.model.lm_head
    num_calls = 0

    def break_at_the_third_token(_module: object, _in: object, out: torch.Tensor) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        return out if num_calls < 3 else torch.full_like(out, float("nan"))

    head.register_forward_hook(break_at_the_third_token)
    *_, failure, done = events(chat(client, stream=True))
    assert (failure["error"]["type"], done) == ("server_error", "[DONE]")


def test_a_release_changed_in_place_is_loaded_again(client: TestClient, config: ServerConfig) -> None:
    before = health(client).weights_sha256
    shutil.rmtree(config.releases_dir / "release-1")
    Path(config.releases_dir / "release-2").rename(config.releases_dir / "release-1")
    answer = client.post("/models/set_active", json={"release_id": "release-1"}, headers=ADMIN)
    assert answer.status_code == 200
    assert health(client).weights_sha256 not in (before, None)
