"""Requests that are generated for together: each gets its own reply, its own end, its own error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from inference.answering import generate
from inference.errors import ServerError
from inference.generation import Generated
from inference.model import LoadedModel
from inference.server.scheduler import Scheduler
from inference.server.work import StreamPiece, Work
from registry.records import GenerationSettings

pytestmark = pytest.mark.model
SETTINGS = GenerationSettings(max_new_tokens=20)
PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 40, 11, 25, 7, 18)]


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(max_running=8, max_tokens=4096)
    yield made
    made.close()


class Ask:
    """A request and all that comes of it."""

    def __init__(
        self, scheduler: Scheduler, loaded: LoadedModel, prompt: tuple[int, ...], **how: Any
    ) -> None:
        self.pieces: SimpleQueue[StreamPiece | Exception] = SimpleQueue()
        how = {"settings": SETTINGS, "put": self.pieces.put} | how
        self.work = Work(loaded, release_id="release", prompt=prompt, **how)
        scheduler.submit(self.work)

    def all(self) -> list[StreamPiece]:
        found: list[StreamPiece] = []
        while not found or found[-1].result is None:
            piece = self.pieces.get(timeout=30)
            if isinstance(piece, Exception):
                raise piece
            found.append(piece)
        return found

    def result(self) -> Generated:
        result = self.all()[-1].result
        assert result is not None
        return result


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_requests_that_run_together_get_the_replies_they_get_alone(
    scheduler: Scheduler, talker: LoadedModel, temperature: float
) -> None:
    settings = SETTINGS.changed(temperature=temperature, top_p=0.9, seed=5)
    asked = [Ask(scheduler, talker, prompt, settings=settings) for prompt in PROMPTS]
    for prompt, ask in zip(PROMPTS, asked, strict=True):
        expected = generate(talker, [prompt], settings=settings)[0]
        got = ask.result()
        assert (got.text, got.token_ids, got.finish_reason) == (
            expected.text,
            expected.token_ids,
            expected.finish_reason,
        )
        assert got.logprob == pytest.approx(expected.logprob, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_stream_gives_the_same_reply_piece_by_piece(
    scheduler: Scheduler, talker: LoadedModel, temperature: float
) -> None:
    settings = SETTINGS.changed(temperature=temperature, top_p=0.9, seed=5)
    for prompt in PROMPTS:
        pieces = Ask(scheduler, talker, prompt, settings=settings, is_streamed=True).all()
        whole = generate(talker, [prompt], settings=settings)[0]
        assert pieces[-1].result is not None
        assert pieces[-1].result.token_ids == whole.token_ids
        assert "".join(piece.text for piece in pieces) == whole.text
        assert len(pieces) == whole.num_tokens
        assert sum(len(piece.tokens) for piece in pieces) == whole.num_tokens


def test_what_is_not_streamed_comes_as_one_piece_with_all_its_tokens(
    scheduler: Scheduler, talker: LoadedModel
) -> None:
    (piece,) = Ask(scheduler, talker, PROMPTS[0], num_likeliest=2).all()
    assert piece.result is not None
    assert len(piece.tokens) == piece.result.num_tokens
    assert all(len(token.likeliest) == 2 for token in piece.tokens)


def test_two_models_answer_at_the_same_time_each_with_its_own_weights(
    scheduler: Scheduler, talker: LoadedModel, tiny: LoadedModel
) -> None:
    asked = [Ask(scheduler, model, PROMPTS[1]) for model in (talker, tiny, talker, tiny)]
    for ask, model in zip(asked, (talker, tiny, talker, tiny), strict=True):
        assert ask.result().token_ids == generate(model, [PROMPTS[1]], settings=SETTINGS)[0].token_ids
    until(lambda: scheduler.num_cached_tokens == 0)


def test_the_cache_never_outgrows_its_bound_and_all_are_served_in_turn(tiny: LoadedModel) -> None:
    scheduler = Scheduler(max_running=8, max_tokens=130)
    sizes: list[int] = []

    def watch(piece: StreamPiece | Exception) -> None:
        del piece
        sizes.append(scheduler.num_cached_tokens)

    asked = [Ask(scheduler, tiny, tuple(range(5, 45)), is_streamed=True) for _ in range(5)]
    asked[0].work.put = lambda piece: (watch(piece), asked[0].pieces.put(piece))[0]
    for ask in asked:
        ask.result()
    scheduler.close()
    assert sizes
    assert max(sizes) <= 130


def test_one_that_nobody_waits_for_makes_room(tiny: LoadedModel) -> None:
    scheduler = Scheduler(max_running=1, max_tokens=4096)
    endless = GenerationSettings(max_new_tokens=400)
    left = Ask(scheduler, replace(tiny, stop_token_ids=frozenset()), PROMPTS[0], settings=endless)
    never_begun = Ask(scheduler, tiny, PROMPTS[0])
    wanted = Ask(scheduler, tiny, PROMPTS[1])
    until(lambda: scheduler.num_running == 1)
    never_begun.work.is_unwanted.set()
    left.work.is_unwanted.set()
    assert wanted.result().num_tokens > 0
    assert never_begun.pieces.empty()
    scheduler.close()


def test_an_error_is_that_of_its_own_batch(
    scheduler: Scheduler, talker: LoadedModel, tiny: LoadedModel
) -> None:
    class Broken:
        def __call__(self, **_named: object) -> None:
            raise RuntimeError("broken")

    broken = Ask(scheduler, replace(tiny, model=Broken()), PROMPTS[0])
    whole = Ask(scheduler, talker, PROMPTS[0])
    with pytest.raises(RuntimeError, match="broken"):
        broken.result()
    assert whole.result().num_tokens > 0
    assert scheduler.num_running == 0


def test_closing_tells_everybody_who_waits(tiny: LoadedModel) -> None:
    scheduler = Scheduler(max_running=1, max_tokens=4096)
    endless = replace(tiny, stop_token_ids=frozenset())
    asked = [
        Ask(scheduler, endless, PROMPTS[0], settings=GenerationSettings(max_new_tokens=400)) for _ in range(3)
    ]
    until(lambda: scheduler.num_running == 1)
    scheduler.close()
    for ask in asked:
        with pytest.raises(ServerError, match="shutting down"):
            ask.result()
    assert "generate" not in {thread.name for thread in threading.enumerate()}
