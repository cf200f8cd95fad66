"""What the doors rely on, of transformers in this process and of a vLLM beside it alike.

vLLM itself needs a GPU: here the stand-in of `inference.server.testing` speaks its documented HTTP.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from inference.answering import generate
from inference.errors import ModelFailed, PromptTooLong, ReleaseError, ServerError
from inference.generation import Generated
from inference.model import LoadedModel, TextModel, load_model
from inference.server.app import make_backend
from inference.server.backend import Backend
from inference.server.config import ServerConfig, VllmConfig
from inference.server.vllm_process import wait_for_the_dead
from inference.server.work import StreamPiece, Work
from inference.testing import build_fragile_model, build_talkative_model
from registry.records import GenerationSettings
from tests.inference.server.conftest import config_for

pytestmark = pytest.mark.model
STAND_IN = VllmConfig(command=(sys.executable, "-m", "inference.server.testing"), start_seconds=120)
SETTINGS = GenerationSettings(max_new_tokens=9)
PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 40, 11, 25, 7, 18)]


class Contract:
    """A backend with two releases loaded: one that talks, and one whose logits break at a character."""

    def __init__(self, backend: Backend, *, talker: TextModel, fragile: TextModel) -> None:
        self.backend = backend
        self.talker = talker
        self.fragile = fragile

    def ask(self, prompt: tuple[int, ...], *, loaded: TextModel | None = None, **how: Any) -> Asked:
        return Asked(self.backend, loaded or self.talker, prompt, **how)


class Asked:
    """A request and all that comes of it."""

    def __init__(self, backend: Backend, loaded: TextModel, prompt: tuple[int, ...], **how: Any) -> None:
        self.pieces: SimpleQueue[StreamPiece | Exception] = SimpleQueue()
        how = {"settings": SETTINGS, "put": self.pieces.put} | how
        self.work = Work(loaded, release_id=loaded.directory.name, prompt=prompt, **how)
        backend.submit(self.work)

    def all(self) -> list[StreamPiece]:
        found: list[StreamPiece] = []
        while not found or found[-1].result is None:
            piece = self.pieces.get(timeout=60)
            if isinstance(piece, Exception):
                raise piece
            found.append(piece)
        return found

    def result(self) -> Generated:
        result = self.all()[-1].result
        assert result is not None
        return result


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("backends")
    build_talkative_model(made / "releases" / "talker")
    build_fragile_model(made / "releases" / "fragile", character="Z")
    return made


@pytest.fixture(scope="module")
def config(directory: Path) -> ServerConfig:
    return config_for(directory / "releases", directory=directory).changed(vllm=STAND_IN)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def contract(request: pytest.FixtureRequest, config: ServerConfig) -> Iterator[Contract]:
    backend = make_backend(config.changed(engine=request.param))
    made = Contract(
        backend,
        talker=backend.load(config.releases_dir / "talker"),
        fragile=backend.load(config.releases_dir / "fragile"),
    )
    yield made
    endless = GenerationSettings(max_new_tokens=1500, stop=("never said",))
    unanswered = [
        made.ask(PROMPTS[0], loaded=replace(made.fragile, stop_token_ids=frozenset()), settings=endless)
        for _ in range(3)
    ]
    until_running(backend, count=1)
    backend.close()
    for asked in unanswered:
        with pytest.raises(ServerError, match="shutting down"):
            asked.result()
    del made.talker, made.fragile, unanswered, asked
    wait_for_the_dead()


@pytest.fixture(scope="module")
def reference(config: ServerConfig) -> LoadedModel:
    return load_model(config.releases_dir / "talker", device="cpu", num_threads=1)


def until_running(backend: Backend, *, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(backend.activity().running) != count and (count == 0 or not backend.activity().running):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_gets_the_reply_that_it_would_get_alone(contract: Contract, reference: LoadedModel) -> None:
    asked = [contract.ask(prompt) for prompt in PROMPTS]
    alone = [generate(reference, [prompt], settings=SETTINGS)[0] for prompt in PROMPTS]
    assert {reply.finish_reason for reply in alone} == {"stop", "length"}
    for one, expected in zip(asked, alone, strict=True):
        got = one.result()
        assert (got.text, got.token_ids, got.num_tokens) == (
            expected.text,
            expected.token_ids,
            expected.num_tokens,
        )
        assert got.finish_reason == expected.finish_reason
        assert got.logprob == pytest.approx(expected.logprob, rel=1e-4)
        assert got.confidence == pytest.approx(expected.confidence, rel=1e-3)


def test_a_streamed_reply_joins_to_the_whole_one(contract: Contract) -> None:
    pieces = contract.ask(PROMPTS[1], is_streamed=True).all()
    assert len(pieces) > 1
    assert "".join(piece.text for piece in pieces) == contract.ask(PROMPTS[1]).result().text
    (whole,) = contract.ask(PROMPTS[1]).all()
    assert [token.token_id for piece in pieces for token in piece.tokens] == [
        token.token_id for token in whole.tokens
    ]


def test_a_stop_string_ends_a_reply_and_is_no_part_of_it(contract: Contract) -> None:
    text = contract.ask(PROMPTS[1]).result().text
    stop = text[2:4]
    result = contract.ask(PROMPTS[1], settings=SETTINGS.changed(stop=(stop,))).result()
    assert (result.text, result.finish_reason) == (text[: text.index(stop)], "stop")
    until_running(contract.backend, count=0)


def test_the_likeliest_are_told_best_first_as_many_as_were_asked(contract: Contract) -> None:
    (piece,) = contract.ask(PROMPTS[0], num_likeliest=3).all()
    assert piece.result is not None
    assert len(piece.tokens) == piece.result.num_tokens
    for token in piece.tokens:
        logprobs = [candidate.logprob for candidate in token.likeliest]
        assert (len(logprobs), logprobs) == (3, sorted(logprobs, reverse=True))
        assert (token.likeliest[0].token_id, logprobs[0]) == (token.token_id, pytest.approx(token.logprob))


def test_a_seed_repeats_a_drawn_reply_and_another_does_not(contract: Contract) -> None:
    drawn = SETTINGS.changed(temperature=1.5, seed=3)
    first, second = (contract.ask(PROMPTS[0], settings=drawn).result() for _ in range(2))
    other = contract.ask(PROMPTS[0], settings=drawn.changed(seed=4)).result()
    assert first.token_ids == second.token_ids != other.token_ids


def test_one_that_nobody_waits_for_is_dropped(contract: Contract) -> None:
    endless = replace(contract.fragile, stop_token_ids=frozenset())
    left = contract.ask(PROMPTS[0], loaded=endless, settings=GenerationSettings(max_new_tokens=1500))
    until_running(contract.backend, count=1)
    left.work.is_unwanted.set()
    until_running(contract.backend, count=0)
    assert left.pieces.empty()


def test_logits_that_are_not_finite_are_an_error_and_harm_nobody_else(contract: Contract) -> None:
    (broken,) = contract.fragile.tokenizer("Z", add_special_tokens=False)["input_ids"]
    failing = contract.ask((5, broken, 6), loaded=contract.fragile)
    whole = contract.ask((5, 6), loaded=contract.fragile)
    with pytest.raises(ModelFailed, match="not finite"):
        failing.result()
    assert math.isfinite(whole.result().logprob or math.nan)


def test_a_prompt_beyond_the_last_position_is_refused(contract: Contract) -> None:
    with pytest.raises(PromptTooLong):
        contract.ask(tuple([5] * contract.talker.max_positions))


def test_what_is_no_release_is_refused_by_name(contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReleaseError, match="Release 'empty' cannot be served"):
        contract.backend.load(tmp_path / "empty")
