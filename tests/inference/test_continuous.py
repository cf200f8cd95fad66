"""Sequences that join and leave get the replies that they would get alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference.answering import generate
from inference.continuous import TRIM_TOKENS, Admission, NextToken, RunningBatch
from inference.errors import OutOfMemory
from inference.model import LoadedModel, load_model
from inference.testing import make_talkative
from inference.tiny import build_tiny_model
from registry.records import GenerationSettings

pytestmark = pytest.mark.model
GREEDY = GenerationSettings(max_new_tokens=12)
DRAWN = GenerationSettings(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=7)
PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 40, 11, 90, 7, 25)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory: Path = build_tiny_model(tmp_path_factory.mktemp("model"))
    return make_talkative(load_model(directory, device="cpu", num_threads=1, verify_files=False))


def alone(loaded: LoadedModel, prompt: tuple[int, ...], settings: GenerationSettings) -> list[int]:
    return list(generate(loaded, [prompt], settings=settings)[0].token_ids)


class Run:
    """Drives a batch, and drops a sequence when it ends."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.batch = loaded, RunningBatch(loaded)
        self.replies: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}
        self.limits: dict[int, int] = {}

    def admit(self, *rows: Admission) -> None:
        for row in rows:
            self.replies[row.key], self.logprobs[row.key] = [], []
            self.limits[row.key] = row.settings.max_new_tokens
        self.take(self.batch.admit(rows))

    def step(self) -> None:
        self.take(self.batch.step())

    def take(self, tokens: list[NextToken]) -> None:
        ended = set()
        for token in tokens:
            self.logprobs[token.key].append(token.logprob)
            if token.token_id in self.loaded.stop_token_ids:
                ended.add(token.key)
                continue
            self.replies[token.key].append(token.token_id)
            if len(self.replies[token.key]) == self.limits[token.key]:
                ended.add(token.key)
        self.batch.drop(ended)

    def finish(self) -> None:
        while self.batch.keys:
            self.step()


def test_sequences_that_join_at_any_step_get_their_own_reply(loaded: LoadedModel) -> None:
    run = Run(loaded)
    settings = [GREEDY, DRAWN, GREEDY, DRAWN, GREEDY, DRAWN]
    rows = [Admission(n, prompt, settings[n]) for n, prompt in enumerate(PROMPTS)]
    run.admit(rows[0])
    run.step()
    run.admit(rows[1], rows[2])
    run.step()
    run.step()
    for row in rows[3:]:
        run.admit(row)
        run.step()
    run.finish()
    for n, prompt in enumerate(PROMPTS):
        assert run.replies[n] == alone(loaded, prompt, settings[n]), n


def test_the_probability_of_a_reply_is_the_one_it_has_alone(loaded: LoadedModel) -> None:
    run = Run(loaded)
    for n, prompt in enumerate(PROMPTS):
        run.admit(Admission(n, prompt, GREEDY))
    run.finish()
    for n, prompt in enumerate(PROMPTS):
        expected = generate(loaded, [prompt], settings=GREEDY)[0].logprob
        assert sum(run.logprobs[n]) == pytest.approx(expected, abs=1e-4)


def test_a_reply_is_as_probable_at_other_temperatures_as_it_is_alone(loaded: LoadedModel) -> None:
    asked = replace(loaded, confidence_temperatures=(0.5, 2.0))
    tokens = RunningBatch(asked).admit([Admission(key, PROMPTS[key], settings=GREEDY) for key in range(3)])
    for token in tokens:
        alone = generate(asked, [PROMPTS[token.key]], settings=GREEDY.changed(max_new_tokens=1))[0]
        assert token.tempered == pytest.approx(alone.tempered_logprobs, abs=1e-4)


def test_the_cache_shrinks_when_the_longest_leaves(loaded: LoadedModel) -> None:
    batch = RunningBatch(loaded)
    batch.admit([Admission(0, (5, 6, 7), GREEDY), Admission(1, tuple(range(5, 5 + 90)), GREEDY)])
    wide = batch.num_cached_tokens
    batch.drop({1})
    assert wide > 2 * 90
    assert batch.num_cached_tokens < TRIM_TOKENS
    batch.drop({0})
    assert batch.num_cached_tokens == 0
    assert batch.keys == []


def test_the_likeliest_tokens_are_told_to_whom_they_were_promised(loaded: LoadedModel) -> None:
    batch = RunningBatch(loaded)
    first, second = batch.admit([Admission(0, (5, 6), GREEDY, num_likeliest=3), Admission(1, (7, 8), GREEDY)])
    assert first.likeliest[0].token_id == first.token_id
    assert first.likeliest[0].logprob == pytest.approx(first.logprob)
    assert len(first.likeliest) == 3
    assert second.likeliest == ()


def test_a_join_that_exceeds_memory_leaves_the_others_as_they_were(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(loaded)
    run.admit(Admission(0, PROMPTS[1], GREEDY))

    def refuse(*_args: object, **_named: object) -> None:
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patched:
        patched.setattr("inference.continuous._joined", refuse)
        with pytest.raises(OutOfMemory, match="max_batch_tokens"):
            run.batch.admit([Admission(1, PROMPTS[3], GREEDY)])
    run.finish()
    assert run.replies[0] == alone(loaded, PROMPTS[1], GREEDY)
