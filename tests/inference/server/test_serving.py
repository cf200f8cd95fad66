"""The server as a process, through real sockets, with the official client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from inference.server.config import ServerConfig

pytestmark = pytest.mark.integration
ADMIN = {"Authorization": "Bearer admin-key-of-the-tests"}
HELLO = [{"role": "user", "content": "hi"}]
START_SECONDS = 120


def start(config: ServerConfig, *, directory: Path) -> subprocess.Popen[str]:
    path = directory / "server.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "inference.server", str(path)]
    with (directory / "server.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True)


def wait_for_url(process: subprocess.Popen[str], *, directory: Path) -> str:
    """The address that the server logs once it listens, when its release is served."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://[\d.]+:\d+", (directory / "server.log").read_text())
        if found and is_ready(found[0]):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {(directory / 'server.log').read_text()}")


def is_ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/health").json()["status"] == "ok")
    except httpx.TransportError:
        return False


@contextmanager
def running(config: ServerConfig, *, directory: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = start(config, directory=directory)
    try:
        yield wait_for_url(process, directory=directory), process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url(module_config: ServerConfig) -> Iterator[str]:
    config = module_config.changed(max_new_tokens=1500)
    with running(config, directory=config.admin_key_file.parent) as (url, _process):
        yield url


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_official_client_gets_whole_and_streamed_answers(url: str) -> None:
    with client_of(url) as client:
        whole = client.chat.completions.create(model="tandem", messages=HELLO, max_tokens=6)
        chunks = list(
            client.chat.completions.create(
                model="tandem",
                messages=HELLO,
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert [model.id for model in client.models.list()] == [whole.model, "tandem", "current"]
        with pytest.raises(openai.NotFoundError, match="is not served"):
            client.chat.completions.create(model="gpt-4", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="does not support 'n'"):
            client.chat.completions.create(model="tandem", messages=HELLO, n=2)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_official_client_gets_completions_and_logprobs_and_its_own_errors(url: str) -> None:
    with client_of(url) as client:
        whole = client.completions.create(model="tandem", prompt="abc", max_tokens=6, logprobs=2)
        parts = list(client.completions.create(model="tandem", prompt="abc", max_tokens=6, stream=True))
        chat = client.chat.completions.create(
            model="tandem", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2
        )
        assert client.models.retrieve("tandem").id == "tandem"
        with pytest.raises(openai.BadRequestError, match="4000 tokens were asked for") as refused:
            client.completions.create(model="tandem", prompt="abc", max_tokens=4000)
    assert refused.value.param == "max_tokens"
    assert refused.value.request_id
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert whole.choices[0].logprobs is not None
    assert "".join(whole.choices[0].logprobs.tokens or []) == whole.choices[0].text
    assert chat.choices[0].logprobs is not None
    assert all(len(entry.top_logprobs) == 2 for entry in chat.choices[0].logprobs.content or [])


def test_a_wrong_key_is_the_official_clients_authentication_error(
    config_with_keys: ServerConfig, tmp_path: Path
) -> None:
    with running(config_with_keys, directory=tmp_path) as (url, _process), client_of(url) as client:
        with pytest.raises(openai.AuthenticationError, match="The API key is wrong"):
            client.models.list()
        reader = client.with_options(api_key="read-key-of-the-tests")
        assert len(list(reader.models.list())) == 3


def test_health_answers_while_a_reply_is_generated(url: str) -> None:
    with client_of(url) as client:
        stream = client.chat.completions.create(model="tandem", messages=HELLO, max_tokens=1500, stream=True)
        next(iter(stream))
        began = time.monotonic()
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        assert time.monotonic() - began < 1
        stream.close()


def test_a_client_that_leaves_frees_the_model(url: str) -> None:
    address, body = f"{url}/v1/chat/completions", {"messages": HELLO, "max_tokens": 1500}
    began = time.monotonic()
    assert httpx.post(address, json=body, timeout=120).json()["usage"]["completion_tokens"] == 1500
    whole_seconds = time.monotonic() - began
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address, json=body, timeout=0.2)
    with httpx.stream("POST", address, json=body | {"stream": True}) as answer:
        next(answer.iter_bytes())
    began = time.monotonic()
    httpx.post(address, json=body | {"max_tokens": 1}, timeout=120)
    assert time.monotonic() - began < whole_seconds / 2


def test_no_request_fails_and_no_answer_mixes_models_while_releases_are_swapped(url: str) -> None:
    """Sixteen clients ask, streamed and now and then whole, while the active release changes ten times."""
    stop = threading.Event()
    errors: list[str] = []
    seen: list[tuple[str, str]] = []
    with client_of(url) as client:
        expected = [activate_and_ask(url, client=client, release_id=f"release-{n}") for n in (2, 1)]
    assert expected[0][1] != expected[1][1]

    def hammer() -> None:
        with client_of(url) as client:
            while not stop.is_set():
                try:
                    seen.append(ask(client, is_streamed=len(seen) % 8 != 0))
                except Exception as error:
                    errors.append(repr(error))

    threads = [threading.Thread(target=hammer) for _ in range(16)]
    for thread in threads:
        thread.start()
    for place in range(10):
        release_id = f"release-{2 - place % 2}"
        num_before = len(seen)
        activate(url, release_id=release_id)
        deadline = time.monotonic() + 60
        while release_id not in dict(seen[num_before:]) and time.monotonic() < deadline and not errors:
            time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert set(seen) == set(expected)
    health = httpx.get(f"{url}/health").json()
    assert (health["num_errors"], health["traffic"]["num_errors"]) == (0, 0)


def activate(url: str, *, release_id: str) -> None:
    body = {"release_id": release_id}
    answer = httpx.post(f"{url}/models/set_active", json=body, headers=ADMIN, timeout=60)
    assert answer.status_code == 200


def activate_and_ask(url: str, *, client: openai.OpenAI, release_id: str) -> tuple[str, str]:
    activate(url, release_id=release_id)
    return ask(client, is_streamed=False)


def ask(client: openai.OpenAI, *, is_streamed: bool) -> tuple[str, str]:
    """The one release that header and every part of the body name, and the text."""
    raw = client.chat.completions.with_raw_response.create(
        model="tandem", messages=HELLO, max_tokens=12, stream=is_streamed
    )
    parsed = raw.parse()
    parts = list(parsed) if is_streamed else [parsed]
    names = {raw.headers["X-Tandem-Release"], *(part.model for part in parts)}
    assert len(names) == 1, names
    assert len({part.system_fingerprint for part in parts}) == 1
    assert any(part.choices[0].finish_reason for part in parts)
    if is_streamed:
        return names.pop(), "".join(part.choices[0].delta.content or "" for part in parts)
    return names.pop(), parsed.choices[0].message.content


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_reply_finish_and_exits_with_zero(
    config: ServerConfig, tmp_path: Path, number: signal.Signals
) -> None:
    generous = config.changed(max_new_tokens=300)
    with running(generous, directory=tmp_path) as (url, process), client_of(url) as client:
        stream = client.chat.completions.create(model="tandem", messages=HELLO, stream=True)
        chunks = iter(stream)
        next(chunks)
        os.kill(process.pid, number)
        assert list(chunks)[-1].choices[0].finish_reason
        assert process.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "server.log").read_text()


def test_a_taken_port_is_one_clear_sentence_and_exit_code_one(config: ServerConfig, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = start(config.changed(port=port), directory=tmp_path)
        assert process.wait(timeout=START_SECONDS) == 1
    log = (tmp_path / "server.log").read_text()
    assert log.strip() == (
        f"tandem server: Cannot listen on 127.0.0.1:{port}: another process listens there. "
        "Stop it, or choose another port."
    )


def test_an_unsafe_configuration_is_one_clear_sentence_and_exit_code_one(
    config: ServerConfig, tmp_path: Path
) -> None:
    process = start(config.changed(host="0.0.0.0"), directory=tmp_path)
    assert process.wait(timeout=START_SECONDS) == 1
    log = (tmp_path / "server.log").read_text()
    assert log.startswith("tandem server: The server would listen on 0.0.0.0 and answer whoever reaches it.")
    assert log.count("\n") == 1


def test_what_a_worker_imports_before_a_job_leaves_torch_unloaded() -> None:
    script = (
        "import sys, inference.errors, inference.server.config, inference.server.__main__; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_events_of_a_stream_do_not_wait_for_one_another(url: str) -> None:
    """With Nagle's algorithm, the second event of a stream came 40 ms after the first, always."""
    gaps = []
    with client_of(url) as client:
        for _ in range(10):
            stream = client.chat.completions.create(model="tandem", messages=HELLO, max_tokens=2, stream=True)
            chunks = iter(stream)
            next(chunks)
            began = time.monotonic()
            next(chunks)
            gaps.append(time.monotonic() - began)
            stream.close()
    assert min(gaps) < 0.03
