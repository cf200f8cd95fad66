from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from inference.answering import generate
from inference.batches import BatchLimits
from inference.errors import PromptTooLong
from inference.generation import Generated
from inference.model import LoadedModel
from registry.records import GenerationSettings

SETTINGS = GenerationSettings(max_new_tokens=24)


def some_prompts(num_prompts: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(4, 99) for _ in range(draw.randrange(1, 50))) for _ in range(num_prompts)]


PROMPTS = some_prompts(24)


@pytest.fixture(scope="module")
def replies(talker: LoadedModel) -> list[Generated]:
    return generate(talker, PROMPTS, settings=SETTINGS)


def test_the_replies_under_test_differ_in_length_and_in_end(replies: list[Generated]) -> None:
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    assert len({reply.num_tokens for reply in replies}) > 5


def test_a_batch_answers_as_one_prompt_at_a_time(talker: LoadedModel, replies: list[Generated]) -> None:
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        alone = generate(talker, [prompt], settings=SETTINGS)[0]
        assert (alone.token_ids, alone.finish_reason) == (reply.token_ids, reply.finish_reason)
        assert alone.logprob == pytest.approx(reply.logprob, abs=1e-3)


def test_greedy_replies_equal_those_of_transformers(talker: LoadedModel, replies: list[Generated]) -> None:
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = torch.tensor([prompt])
        output = talker.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
        )
        expected = output[0, len(prompt) :].tolist()
        ended = [talker.end_of_turn_id] if reply.finish_reason == "stop" else []
        assert [*reply.token_ids, *ended] == expected
        assert reply.num_tokens == len(expected)


@pytest.mark.parametrize("limits", [BatchLimits(max_rows=5), BatchLimits(max_tokens=200)])
def test_how_the_work_is_cut_changes_no_reply(
    talker: LoadedModel, replies: list[Generated], limits: BatchLimits
) -> None:
    again = generate(talker, PROMPTS, settings=SETTINGS, limits=limits)
    assert [reply.token_ids for reply in again] == [reply.token_ids for reply in replies]


def test_confidence_is_the_probability_of_the_whole_sequence_with_its_end(
    talker: LoadedModel, replies: list[Generated]
) -> None:
    prompt, reply = next(pair for pair in zip(PROMPTS, replies, strict=True) if pair[1].num_tokens > 3)
    ended = (talker.end_of_turn_id,) if reply.finish_reason == "stop" else ()
    ids = prompt + reply.token_ids + ended
    with torch.inference_mode():
        logprobs = talker.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
    assert reply.logprob == pytest.approx(expected, abs=1e-3)
    assert reply.confidence == pytest.approx(math.exp(expected), rel=1e-2)


def test_finished_rows_leave_the_batch(talker: LoadedModel, replies: list[Generated]) -> None:
    sizes: list[int] = []
    hook = talker.model.lm_head.register_forward_hook(lambda _module, _in, out: sizes.append(out.shape[0]))
    generate(talker, PROMPTS, settings=SETTINGS)
    hook.remove()
    assert sizes == [sum(reply.num_tokens > step for reply in replies) for step in range(len(sizes))]
    assert sizes[0] == 24 > sizes[-1]


def test_sampling_repeats_with_its_seed_whatever_else_is_in_the_batch(talker: LoadedModel) -> None:
    settings = SETTINGS.changed(temperature=1.5, seed=11)
    batch = [reply.token_ids for reply in generate(talker, PROMPTS[:6], settings=settings)]
    alone = [generate(talker, [prompt], settings=settings)[0].token_ids for prompt in PROMPTS[:6]]
    other = [reply.token_ids for reply in generate(talker, PROMPTS[:6], settings=settings.changed(seed=12))]
    assert batch == alone
    assert batch != other


def test_a_stop_string_ends_the_reply_before_itself(talker: LoadedModel, replies: list[Generated]) -> None:
    prompt, reply = next(pair for pair in zip(PROMPTS, replies, strict=True) if len(pair[1].text) > 8)
    stop = reply.text[4:6]
    stopped = generate(talker, [prompt], settings=SETTINGS.changed(stop=(stop,)))[0]
    assert stopped.text == reply.text[: reply.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.num_tokens < reply.num_tokens


def test_a_reply_ends_at_the_models_last_position(talker: LoadedModel, replies: list[Generated]) -> None:
    place = next(i for i, reply in enumerate(replies) if reply.finish_reason == "length")
    short = replace(talker, max_positions=len(PROMPTS[place]) + 3)
    reply = generate(short, [PROMPTS[place]], settings=SETTINGS)[0]
    assert (reply.num_tokens, reply.finish_reason) == (3, "length")
    assert reply.token_ids == replies[place].token_ids[:3]


def test_a_prompt_that_leaves_no_position_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(PromptTooLong, match="10 tokens; the model reads 10"):
        generate(replace(tiny, max_positions=10), [(5,) * 10], settings=SETTINGS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_end_the_reply_without_a_confidence(
    tiny: LoadedModel, temperature: float
) -> None:
    def poison(_module: object, _in: object, out: torch.Tensor) -> torch.Tensor:
        bad = out.clone()
        bad.view(-1, bad.shape[-1])[0, 7] = math.nan
        return bad

    hook = tiny.model.lm_head.register_forward_hook(poison)
    settings = GenerationSettings(max_new_tokens=4, temperature=temperature)
    # The longer prompt is first in its batch and is the one poisoned at the first step.
    poisoned = generate(tiny, [(5, 6, 7), (5,)], settings=settings)[0]
    hook.remove()
    assert (poisoned.finish_reason, poisoned.confidence, poisoned.logprob) == ("error", None, None)


def test_no_prompts_give_no_replies(tiny: LoadedModel) -> None:
    assert generate(tiny, [], settings=SETTINGS) == []
