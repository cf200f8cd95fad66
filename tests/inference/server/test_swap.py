"""How a release takes another's place: tried first, beside it or instead of it, and never by half."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from inference.model import LoadedModel, TextModel
from inference.server.app import make_app
from inference.server.config import ServerConfig
from inference.server.local import LocalBackend
from inference.testing import build_fragile_model, build_mumbling_model
from tests.inference.server.test_app import ADMIN, chat, error_of, events, health

pytestmark = pytest.mark.model
NO_ROOM: Callable[[], int] = lambda: 0  # noqa: E731 - a planted limit


class WatchedBackend(LocalBackend):
    """Counts the models that are alive when another is loaded, and loads when it may."""

    def __init__(self, config: ServerConfig, *, measure_free: Callable[[], int] | None = None) -> None:
        super().__init__(config, measure_free=measure_free)
        self.may_load = threading.Event()
        self.may_load.set()
        self.num_alive: list[int] = []
        self._made: list[weakref.ref[TextModel]] = []

    def load(self, directory: Path) -> LoadedModel:
        self.may_load.wait(timeout=30)
        gc.collect()
        self.num_alive.append(sum(made() is not None for made in self._made))
        loaded = super().load(directory)
        self._made.append(weakref.ref(loaded.model))
        return loaded


@contextmanager
def serving(
    config: ServerConfig, *, measure_free: Callable[[], int] | None = None
) -> Iterator[tuple[TestClient, WatchedBackend]]:
    backend = WatchedBackend(config, measure_free=measure_free)
    app = make_app(config, backend=backend)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        app.state.restored.result(timeout=60)
        yield client, backend


def activate(client: TestClient, release_id: str) -> Any:
    return client.post("/models/set_active", json={"release_id": release_id}, headers=ADMIN)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def build_faulty(directory: Path, *, kind: str) -> None:
    if kind == "not finite":
        build_fragile_model(directory, character="?")  # which one of the trial's prompts holds
    else:
        build_mumbling_model(directory, ends_at_once=kind == "answered nothing")


@pytest.mark.parametrize("swap", ["beside", "pause"])
@pytest.mark.parametrize("kind", ["not finite", "answered nothing", "which is no text"])
def test_what_loads_and_cannot_answer_never_answers_a_user(
    config: ServerConfig, kind: str, swap: str
) -> None:
    build_faulty(config.releases_dir / "release-3", kind=kind)
    with serving(config.changed(swap=swap)) as (client, _backend):
        before = chat(client).json()["choices"]
        answer = activate(client, "release-3")
        assert (answer.status_code, error_of(answer)["code"]) == (422, "release_unusable")
        assert kind in error_of(answer)["message"]
        assert (health(client).status, health(client).release_id) == ("ok", "release-1")
        assert kind in health(client).problem
        after = chat(client).json()
        assert (after["model"], after["choices"]) == ("release-1", before)
        assert chat(client, model="release-3").status_code == 404


def test_a_trial_counts_as_nobodys_request(config: ServerConfig) -> None:
    with serving(config) as (client, _backend):
        activate(client, "release-2")
        state = health(client)
        assert (state.num_requests, state.num_errors) == (0, 0)
        assert state.traffic is not None
        assert (state.traffic.release_id, state.traffic.num_requests) == ("release-2", 0)
        chat(client)
        chat(client, temperature=9)
        counted = health(client).traffic
        assert counted is not None
        assert (counted.num_requests, counted.num_errors) == (1, 0)


@pytest.mark.parametrize(
    ("measure_free", "num_alive"), [(lambda: 10**12, [0, 1]), (NO_ROOM, [0, 0])], ids=["room", "no room"]
)
def test_the_old_model_is_freed_first_where_memory_is_short_and_only_there(
    config: ServerConfig, measure_free: Callable[[], int], num_alive: list[int]
) -> None:
    with serving(config, measure_free=measure_free) as (client, backend):
        chat(client)
        assert activate(client, "release-2").status_code == 200
        assert chat(client).json()["model"] == "release-2"
        assert backend.num_alive == num_alive


def test_an_idle_server_keeps_no_model_that_it_does_not_serve(config: ServerConfig) -> None:
    """The scheduler waits for a request; nothing of the last one may lie in its frames."""
    with serving(config) as (client, backend):
        chat(client)
        activate(client, "release-2")
        activate(client, "release-1")
        assert backend.num_alive[-1] == 1


def test_requests_are_held_while_a_release_is_put_in_place_and_answered_by_it(config: ServerConfig) -> None:
    with serving(config, measure_free=NO_ROOM) as (client, backend), ThreadPoolExecutor() as threads:
        backend.may_load.clear()
        swapping = threads.submit(activate, client, "release-2")
        until(lambda: health(client).step == "loading")
        state = health(client)
        assert (state.status, state.release_id, state.loading_release_id) == ("loading", None, "release-2")
        held = [threads.submit(chat, client) for _ in range(3)]
        until(lambda: health(client).num_waiting == 3)
        backend.may_load.set()
        assert [answer.result().json()["model"] for answer in held] == ["release-2"] * 3
        assert swapping.result().json()["previous_release_id"] == "release-1"
        assert (health(client).status, health(client).step) == ("ok", "")


def test_a_request_is_held_no_longer_than_the_setting(config: ServerConfig) -> None:
    impatient = config.changed(max_pause_seconds=0.3)
    with serving(impatient, measure_free=NO_ROOM) as (client, backend), ThreadPoolExecutor() as threads:
        backend.may_load.clear()
        swapping = threads.submit(activate, client, "release-2")
        until(lambda: health(client).step == "loading")
        began = time.monotonic()
        answer = chat(client)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "no_active_release")
        assert "Retry-After" in answer.headers
        assert time.monotonic() - began < 10
        backend.may_load.set()
        assert swapping.result().status_code == 200


def test_what_does_not_drain_in_time_stays(config: ServerConfig) -> None:
    patient = config.changed(max_pause_seconds=0.3, max_new_tokens=1500)
    with serving(patient, measure_free=NO_ROOM) as (client, _backend), ThreadPoolExecutor() as threads:
        long = threads.submit(chat, client, max_tokens=1500, stream=True)
        until(lambda: client.get("/jobs").json()["running"] != [])
        answer = activate(client, "release-2")
        assert answer.status_code == 422
        assert "did not end in 0.3 s" in error_of(answer)["message"]
        assert chat(client).json()["model"] == "release-1"
        *chunks, done = events(long.result())
        assert ({chunk["model"] for chunk in chunks}, done) == ({"release-1"}, "[DONE]")


def test_a_release_broken_on_disk_pauses_nothing(config: ServerConfig) -> None:
    (config.releases_dir / "release-2" / "tokenizer.json").unlink()
    with serving(config, measure_free=NO_ROOM) as (client, backend):
        loaded_at = health(client).loaded_at
        assert activate(client, "release-2").status_code == 422
        assert (health(client).loaded_at, backend.num_alive) == (loaded_at, [0])


def test_where_neither_can_be_loaded_the_server_says_both(config: ServerConfig) -> None:
    build_mumbling_model(config.releases_dir / "release-3", ends_at_once=True)
    with serving(config, measure_free=NO_ROOM) as (client, _backend):
        (config.releases_dir / "release-1" / "config.json").write_text("{}")
        answer = activate(client, "release-3")
        assert answer.status_code == 422
        assert "answered nothing" in error_of(answer)["message"]
        assert "release-1 could not be loaded again" in error_of(answer)["message"]
        assert health(client).status == "error"
        assert chat(client).status_code == 503
        assert activate(client, "release-2").status_code == 200
