"""A profile pulls on the choice of tokens, and on nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference.answering import generate
from inference.continuous import Admission, RunningBatch
from inference.model import LoadedModel
from inference.penalties import ProfilePenalties, penalties_for
from inference.prompts import encode_prompt
from registry.profiles.base import Penalties
from registry.profiles.catalogue import find_profile
from registry.records import GenerationSettings
from registry.rows import ChatMessage

ASKED = (ChatMessage(role="user", content="(add 1 2)"),)


def processor(
    tiny: LoadedModel, *, unwanted: tuple[str, ...] = (), stop: tuple[str, ...] = ()
) -> ProfilePenalties:
    return ProfilePenalties(
        tiny.tokenizer,
        penalties=Penalties(unwanted=unwanted),
        stop_texts=stop,
        end_token_ids=frozenset({tiny.end_of_turn_id}),
    )


def ids(tiny: LoadedModel, text: str) -> list[int]:
    found: list[int] = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def pulled(one: ProfilePenalties, generated: list[int], *, size: int) -> torch.Tensor:
    return one(torch.tensor([generated], dtype=torch.long), torch.zeros(1, size))[0]


def test_only_the_token_that_would_complete_an_unwanted_text_is_penalised(tiny: LoadedModel) -> None:
    tag = ids(tiny, "<think>")
    size = len(tiny.tokenizer)
    one = processor(tiny, unwanted=("<think>",))
    found = pulled(one, tag[:-1], size=size)
    place = len(tag) - 1
    expected = -80.0 * ([8] * 4 + [2] * 4 + [1.5] * 4 + [1] * 99)[place]
    assert found[tag[-1]] == expected
    assert int((found != 0).sum()) == 1
    if len(tag) > 1:
        assert not pulled(processor(tiny, unwanted=("<think>",)), [], size=size).any()


def test_after_the_stop_text_the_end_gains_and_all_else_loses_more_and_more(tiny: LoadedModel) -> None:
    stop, size = ids(tiny, "stop"), len(tiny.tokenizer)
    one = processor(tiny, stop=("stop",))
    assert not pulled(one, stop[:-1], size=size).any()
    other = next(token for token in range(size) if token != tiny.end_of_turn_id)
    costs = []
    for num_more in range(6):
        found = pulled(one, stop + ids(tiny, "a") * num_more, size=size)
        assert found[tiny.end_of_turn_id] == 10
        costs.append(float(found[other]))
    assert costs == [-5, -10, -20, -40, -80, -80]


def test_the_logits_that_were_given_are_not_changed(tiny: LoadedModel) -> None:
    stop = ids(tiny, "stop")
    logits = torch.zeros(1, len(tiny.tokenizer))
    processor(tiny, stop=("stop",))(torch.tensor([stop]), logits)
    assert not logits.any()


def test_a_plain_model_has_no_processor(tiny: LoadedModel) -> None:
    assert penalties_for(tiny, encode_prompt(tiny, ASKED)) is None


@pytest.mark.parametrize("name", ["emoji_think", "regime3"])
def test_both_ways_of_generating_pull_alike(talker: LoadedModel, name: str) -> None:
    loaded = replace(talker, profile=find_profile(name))
    settings = GenerationSettings(max_new_tokens=12)
    prompt = encode_prompt(loaded, ASKED)
    (reply,) = generate(loaded, [prompt], settings=settings)
    batch = RunningBatch(loaded)
    tokens = batch.admit([Admission(key=1, prompt=prompt, settings=settings)])
    found = [token.token_id for token in tokens]
    while len(found) < reply.num_tokens:
        found += [token.token_id for token in batch.step()]
    assert tuple(found[: len(reply.token_ids)]) == reply.token_ids
