"""The doors before a vLLM: the stand-in as a process of its own, over real HTTP."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

import inference.server.vllm
from inference.errors import EngineDown, ReleaseError
from inference.model import load_model, load_text_model
from inference.server.config import ServerConfig, VllmConfig
from inference.server.vllm import VllmBackend, _tokens
from inference.testing import build_fragile_model, build_talkative_model
from registry.profiles.base import Penalties
from tests.inference.server.conftest import config_for, serving
from tests.inference.server.test_app import ADMIN, chat, error_of, health
from tests.inference.server.test_backends import STAND_IN
from tests.inference.server.test_doors import complete, numbers

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    directory = tmp_path_factory.mktemp("server")
    build_talkative_model(directory / "releases" / "release-1")
    build_talkative_model(directory / "releases" / "release-2", seed=1)
    build_fragile_model(directory / "releases" / "release-3", character="?")
    (directory / "releases" / "current").symlink_to("release-1")
    return config_for(directory / "releases", directory=directory).changed(vllm=STAND_IN)


@contextmanager
def vllm_serving(config: ServerConfig) -> Iterator[TestClient]:
    with serving(config.changed(engine="vllm")) as client:
        yield client


def same_answers(client: TestClient) -> list[Any]:
    """What must not depend on the engine: texts, tokens, reasons, counts, confidence."""
    whole = chat(client, logprobs=True, top_logprobs=2).json()
    entries = whole["choices"][0]["logprobs"]["content"]
    goes_on = complete(client, prompt=["abc", "xyz"], logprobs=1).json()
    plain = client.post("/generate", json={"prompt": "hi", "max_new_tokens": 9}).json()
    return [
        whole["model"],
        whole["usage"],
        whole["choices"][0]["message"],
        whole["choices"][0]["finish_reason"],
        [(entry["token"], round(entry["logprob"], 3)) for entry in entries],
        [(choice["text"], choice["logprobs"]["tokens"]) for choice in goes_on["choices"]],
        (plain["text"], plain["num_tokens"], plain["finish_reason"], round(plain["confidence"]["own"], 4)),
        plain["confidence"]["reason"],
        error_of(chat(client, model="gpt-4")),
        error_of(chat(client, messages=[{"role": "user", "content": "x" * 300}])),
    ]


def processes() -> list[psutil.Process]:
    """The stand-ins that run; one that has just ended is none."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "inference.server.testing" in " ".join(child.cmdline()):
                found.append(child)
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_doors_answer_as_with_transformers_swap_refuse_and_come_back(config: ServerConfig) -> None:
    with serving(config) as client:
        expected = same_answers(client)
    with vllm_serving(config) as client:
        assert same_answers(client) == expected
        info = client.get("/info").json()
        assert (info["engine"], info["release_id"], info["device"]) == ("vllm", "release-1", None)
        assert numbers(client)["tandem_generated_tokens_total"] > 0

        refused = client.post("/models/set_active", json={"release_id": "release-3"}, headers=ADMIN)
        assert (refused.status_code, error_of(refused)["code"]) == (422, "release_unusable")
        assert "not finite" in error_of(refused)["message"]
        assert chat(client).json()["model"] == "release-1"

        swapped = client.post("/models/set_active", json={"release_id": "release-2"}, headers=ADMIN)
        assert swapped.status_code == 200
        assert chat(client).json()["model"] == "release-2"
        (process,) = processes()

        os.kill(process.pid, signal.SIGKILL)
        until(lambda: health(client).status == "error")
        answer = chat(client)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "engine_unavailable")
        assert "Retry-After" in answer.headers
        again = chat(client)  # held until it was loaded again
        assert (again.status_code, again.json()["model"]) == (200, "release-2")
        traffic = health(client).traffic
        assert traffic is not None
        assert traffic.num_errors == 0
    until(lambda: processes() == [])


def test_without_vllm_the_server_says_so_and_stays_up(config: ServerConfig) -> None:
    absent = VllmConfig(command=("no-such-vllm", "serve"))
    with vllm_serving(config.changed(vllm=absent)) as client:
        assert health(client).status == "error"
        assert health(client).problem.startswith("vLLM cannot be started: no-such-vllm")
        answer = chat(client)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "no_active_release")
        assert "no-such-vllm" in error_of(answer)["message"]


def test_a_vllm_that_ends_as_it_starts_is_told_with_its_code(config: ServerConfig) -> None:
    backend = VllmBackend(config.changed(vllm=VllmConfig(command=("false",))))
    with pytest.raises(ReleaseError, match="vLLM ended with code 1"):
        backend.load(config.releases_dir / "release-1")
    backend.close()


def test_a_profile_with_penalties_is_left_to_transformers(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pulling:
        penalties = Penalties(unwanted=("x",))

    text = load_text_model(config.releases_dir / "release-1")
    monkeypatch.setattr(inference.server.vllm, "load_text_model", lambda _: replace(text, profile=Pulling()))
    backend = VllmBackend(config)
    with pytest.raises(ReleaseError, match="penalties vLLM does not apply"):
        backend.load(config.releases_dir / "release-1")
    backend.close()


def test_a_token_without_a_number_is_not_a_number() -> None:
    line = (
        'data: {"choices": [{"logprobs": {"tokens": ["token_id:7"], "token_logprobs": [null], '
        '"top_logprobs": [null]}}]}'
    )
    (token,) = _tokens(line, num_likeliest=2)
    assert (token.token_id, token.likeliest) == (7, ())
    assert math.isnan(token.logprob)


@pytest.mark.parametrize("line", ["", ": ping", "data: [DONE]", 'data: {"choices": []}'])
def test_lines_without_tokens_have_none(line: str) -> None:
    assert list(_tokens(line, num_likeliest=0)) == []


@pytest.mark.parametrize(
    "line", ["data: {", 'data: {"error": {"message": "no"}}', 'data: {"choices": [{}]}', 'data: {"a": 1}']
)
def test_what_vllm_should_not_say_is_an_engine_that_is_down(line: str) -> None:
    with pytest.raises(EngineDown):
        list(_tokens(line, num_likeliest=0))


def test_a_text_model_is_what_the_loaded_one_tells_of_itself(config: ServerConfig) -> None:
    directory = config.releases_dir / "release-1"
    text, loaded = load_text_model(directory), load_model(directory, device="cpu")
    for name in ("weights_sha256", "end_of_turn_id", "stop_token_ids", "pad_token_id", "max_positions"):
        assert getattr(text, name) == getattr(loaded, name)
