"""The doors beside chat: completions, one plain question, what the server is and what it is at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from inference.server.config import ServerConfig
from tests.inference.server.test_app import ADMIN, READER, chat, error_of, events

pytestmark = pytest.mark.model
Serve = Callable[[ServerConfig], Any]
GOING_ON = {"prompt": "abc", "max_tokens": 5}


def complete(client: TestClient, **fields: object) -> Any:
    return client.post("/v1/completions", json=GOING_ON | fields)


def numbers(client: TestClient) -> dict[str, float]:
    text = client.get("/metrics").text
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_completion_goes_on_with_the_text_as_it_is(client: TestClient) -> None:
    body = complete(client).json()
    assert (body["object"], body["model"]) == ("text_completion", "release-1")
    (choice,) = body["choices"]
    assert (choice["index"], choice["logprobs"]) == (0, None)
    assert choice["finish_reason"] in ("stop", "length")
    assert body["usage"]["completion_tokens"] <= 5
    # No template: the prompt is what was sent and nothing more.
    tokenizer = client.app.state.engine.active().loaded.tokenizer
    assert body["usage"]["prompt_tokens"] == len(tokenizer("abc", add_special_tokens=False)["input_ids"])


def test_several_prompts_get_a_choice_each_in_their_order(client: TestClient) -> None:
    body = complete(client, prompt=["abc", "xyz", "abc"]).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    alone = complete(client, prompt="xyz").json()["choices"][0]["text"]
    assert body["choices"][1]["text"] == alone
    assert body["choices"][0]["text"] == body["choices"][2]["text"]


def test_a_streamed_completion_tells_the_same_text(client: TestClient) -> None:
    whole = complete(client).json()
    *chunks, last, done = events(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (last["choices"], last["usage"], done) == ([], whole["usage"], "[DONE]")


def test_logprobs_of_a_completion_are_parallel_lists(client: TestClient) -> None:
    choice = complete(client, logprobs=2).json()["choices"][0]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"])
    assert told["text_offset"][0] == 0
    # Greedy: the token is the likeliest.
    assert all(
        logprob == pytest.approx(max(likeliest.values()))
        for logprob, likeliest in zip(told["token_logprobs"], told["top_logprobs"], strict=True)
    )


def test_logprobs_of_a_chat_tell_each_token_whole_and_streamed(client: TestClient) -> None:
    body = chat(client, logprobs=True, top_logprobs=3).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == body["choices"][0]["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 3 for entry in content)
    assert all(0 < math.exp(entry["logprob"]) <= 1 for entry in content)
    streamed = [
        entry
        for chunk in events(chat(client, logprobs=True, top_logprobs=3, stream=True))
        if chunk != "[DONE]" and chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in content]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "none empty"),
        ({"prompt": ["a"] * 17}, "1 to 16 texts"),
        ({"prompt": ["a", "b"], "stream": True}, "A stream answers one prompt"),
        ({"echo": True}, "does not support 'echo'"),
        ({"max_tokens": 4000}, "4000 tokens were asked for"),
        ({"logprobs": 99}, "less than or equal to 20"),
        ({"model": "gpt-4"}, "is not served"),
    ],
)
def test_a_completion_that_cannot_be_had_is_refused_with_the_reason(
    client: TestClient, fields: dict[str, object], said: str
) -> None:
    answer = complete(client, **fields)
    assert answer.status_code in (400, 404)
    assert said in error_of(answer)["message"]


def test_a_plain_question_gets_a_plain_answer(client: TestClient) -> None:
    answer = client.post("/generate", json={"prompt": "hi", "max_new_tokens": 5}).json()
    assert answer["text"] == chat(client).json()["choices"][0]["message"]["content"]
    assert (answer["release_id"], answer["num_tokens"] <= 5) == ("release-1", True)
    assert answer["logprob"] < 0
    refused = client.post("/generate", json={"prompt": "hi", "max_tokens": 5})
    assert refused.status_code == 400
    assert "max_tokens" in error_of(refused)["message"]


def test_the_server_tells_what_it_is_and_what_it_stands_on(client: TestClient) -> None:
    info = client.get("/info").json()
    assert (info["release_id"], info["device"], info["dtype"]) == ("release-1", "cpu", "float32")
    assert info["num_parameters"] > 1000
    assert info["max_running"] == 16
    system = client.get("/system").json()
    assert system["memory_available_bytes"] <= system["memory_total_bytes"]
    assert len(client.get("/gpu").json()["devices"]) == 0
    assert client.get("/jobs").json() == {"running": [], "num_waiting": 0, "num_cached_tokens": 0}


def test_without_a_release_the_info_says_so(config: ServerConfig, serve: Serve) -> None:
    (config.releases_dir / "current").unlink()
    with serve(config) as client:
        info = client.get("/info").json()
        assert (info["release_id"], info["num_parameters"]) == (None, None)
        assert numbers(client)["tandem_release_active"] == 0


def test_metrics_count_answers_by_route_and_tokens(client: TestClient) -> None:
    usage = chat(client).json()["usage"]
    client.get("/v1/models/nonsense-1")
    client.get("/nowhere")
    found = numbers(client)
    assert found["tandem_http_requests_total[/v1/chat/completions][200]"] == 1
    assert found["tandem_http_requests_total[/v1/models/{name}][404]"] == 1
    assert found["tandem_http_requests_total[other][404]"] == 1
    assert found["tandem_generated_tokens_total"] == usage["completion_tokens"]
    assert found["tandem_prompt_tokens_total"] == usage["prompt_tokens"]
    assert found["tandem_time_to_first_token_seconds_count"] == 1
    assert found["tandem_release_active"] == 1


def test_registering_a_release_verifies_every_file_and_loads_nothing(
    client: TestClient, config: ServerConfig
) -> None:
    answer = client.post("/models/register", json={"release_id": "release-2"}, headers=ADMIN)
    assert (answer.status_code, answer.json()["is_active"]) == (200, False)
    weights = next(Path(config.releases_dir / "release-2").glob("*.safetensors"))
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(bytes(flipped))
    answer = client.post("/models/register", json={"release_id": "release-2"}, headers=ADMIN)
    assert answer.status_code == 422
    assert weights.name in error_of(answer)["message"]
    assert client.post("/models/register", json={"release_id": "../x"}, headers=ADMIN).status_code == 400


@pytest.fixture
def guarded(config_with_keys: ServerConfig, serve: Serve) -> Iterator[TestClient]:
    with serve(config_with_keys) as client:
        yield client


@pytest.mark.parametrize("path", ["/info", "/gpu", "/system", "/jobs", "/metrics", "/models"])
def test_what_the_server_tells_of_itself_needs_the_read_key(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 401
    assert guarded.get(path, headers=READER).status_code == 200


@pytest.mark.parametrize("path", ["/models/register", "/models/set_active"])
def test_what_changes_the_server_needs_the_admin_key(guarded: TestClient, path: str) -> None:
    body = {"release_id": "release-2"}
    assert guarded.post(path, json=body).status_code == 401
    assert guarded.post(path, json=body, headers=READER).status_code == 403
    assert guarded.post(path, json=body, headers=ADMIN).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "[::1]:8765", "[::1]", "LOCALHOST:1"])
def test_whoever_asks_for_this_machine_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8765"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_web_page_gets_nothing_of_an_open_server(client: TestClient, headers: dict[str, str]) -> None:
    """Neither by pointing its own name at loopback, nor by asking across."""
    answer = client.post("/generate", json={"prompt": "hi"}, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (403, "foreign_host")
    assert answer.headers["X-Request-Id"]


def test_behind_a_key_any_name_will_do(guarded: TestClient) -> None:
    headers = READER | {"Host": "tandem.example", "Origin": "https://chat.example"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200
