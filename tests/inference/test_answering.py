"""One pass says what two would: the score of the expected answer, and the reply."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference.answering import Answered, answers, generate
from inference.batches import BatchLimits
from inference.generation import Generated
from inference.model import LoadedModel
from inference.prompts import EncodedRow
from inference.reading import common_prefix
from inference.scoring import score
from registry.records import TEMPERATURES, GenerationSettings

SETTINGS = GenerationSettings(max_new_tokens=24)
BEGINNING = tuple(range(40, 60))
PROMPTS = [tuple(5 + (place * 7 + step) % 90 for step in range(3 + place % 17)) for place in range(20)]


def with_answers(loaded: LoadedModel, replies: list[Generated]) -> list[EncodedRow]:
    """What the model says, in part with another token in its middle."""
    rows = []
    for place, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        answer = [*reply.token_ids, loaded.end_of_turn_id]
        if place % 2:
            answer[len(answer) // 2] = 30 + place
        rows.append(EncodedRow(prompt=prompt, answer=tuple(answer)))
    return rows


def in_order(found: list[Answered]) -> list[Answered]:
    return sorted(found, key=lambda one: one.place)


@pytest.fixture(scope="module")
def replies(talker: LoadedModel) -> list[Generated]:
    return generate(talker, PROMPTS, settings=SETTINGS)


@pytest.mark.parametrize("limits", [BatchLimits(), BatchLimits(max_tokens=150), BatchLimits(max_rows=3)])
@pytest.mark.parametrize(
    "how", [SETTINGS, SETTINGS.changed(temperature=1.2, seed=5)], ids=["greedy", "drawn"]
)
def test_a_row_has_the_score_and_the_reply_it_would_get_alone(
    talker: LoadedModel, replies: list[Generated], limits: BatchLimits, how: GenerationSettings
) -> None:
    rows = with_answers(talker, replies)
    found = in_order(list(answers(talker, rows, settings=how, limits=limits)))
    assert [one.place for one in found] == list(range(len(rows)))
    for one, expected, row in zip(found, score(talker, rows), rows, strict=True):
        assert one.score.loss == pytest.approx(expected.loss, abs=1e-4)
        assert one.score.is_greedy == expected.is_greedy
        alone = generate(talker, [row.prompt], settings=how)[0]
        assert (one.reply.token_ids, one.reply.finish_reason) == (alone.token_ids, alone.finish_reason)
        assert one.reply.logprob == pytest.approx(alone.logprob, abs=1e-3)


def num_steps_of(talker: LoadedModel, rows: list[EncodedRow]) -> int:
    sizes: list[int] = []
    hook = talker.model.register_forward_hook(lambda _module, _in, out: sizes.append(len(out.logits)))
    list(answers(talker, rows, settings=SETTINGS))
    hook.remove()
    return sum(sizes)


def test_a_right_answer_needs_no_step_and_a_wrong_one_only_from_where_it_is_wrong(
    talker: LoadedModel, replies: list[Generated]
) -> None:
    ended = [reply for reply in replies if reply.finish_reason == "stop"]
    prompts = [prompt for prompt, reply in zip(PROMPTS, replies, strict=True) if reply in ended]
    end = (talker.end_of_turn_id,)
    right = [
        EncodedRow(prompt, answer=(*reply.token_ids, *end))
        for prompt, reply in zip(prompts, ended, strict=True)
    ]
    assert len(right) > 5
    assert num_steps_of(talker, right) == 0
    place = max(range(len(ended)), key=lambda one: ended[one].num_tokens)
    reply, prompt = ended[place], prompts[place]
    wrong = EncodedRow(prompt, answer=(*reply.token_ids[:-1], *end))
    assert num_steps_of(talker, [wrong]) == 1
    assert num_steps_of(talker, [EncodedRow(prompt, answer=())]) == reply.num_tokens - 1


def test_a_stop_string_within_what_is_right_ends_the_reply_there(
    talker: LoadedModel, replies: list[Generated]
) -> None:
    prompt, reply = max(zip(PROMPTS, replies, strict=True), key=lambda pair: len(pair[1].text))
    how = SETTINGS.changed(stop=(reply.text[2:4],))
    row = EncodedRow(prompt, answer=(*reply.token_ids, talker.end_of_turn_id))
    (found,) = answers(talker, [row], settings=how)
    assert found.reply == generate(talker, [prompt], settings=how)[0]
    assert found.reply.text == reply.text[: reply.text.index(reply.text[2:4])]


def test_a_beginning_that_all_prompts_share_is_read_once_and_changes_nothing(talker: LoadedModel) -> None:
    rows = [EncodedRow(BEGINNING + prompt, answer=(7, 8, talker.end_of_turn_id)) for prompt in PROMPTS]
    widths: list[int] = []
    hook = talker.model.model.embed_tokens.register_forward_hook(
        lambda _module, given, _out: widths.append(given[0].shape[1])
    )
    found = in_order(list(answers(talker, rows, settings=SETTINGS)))
    hook.remove()
    assert widths[0] == len(BEGINNING)
    assert max(widths[1:]) == max(map(len, PROMPTS)) + 2
    for one, expected, row in zip(found, score(talker, rows), rows, strict=True):
        assert one.score.loss == pytest.approx(expected.loss, abs=1e-4)
        assert one.reply.token_ids == generate(talker, [row.prompt], settings=SETTINGS)[0].token_ids


def test_a_prompt_is_never_all_of_the_shared_beginning() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 3, 4)]) == (1, 2)
    assert common_prefix([(1, 2, 3)]) == (1, 2)
    assert common_prefix([(1, 2), (3, 4)]) == ()
    assert common_prefix([]) == ()


def test_no_more_tokens_are_held_than_allowed_however_long_replies_grow(talker: LoadedModel) -> None:
    limits = BatchLimits(max_tokens=160)
    held: list[int] = []
    hook = talker.model.register_forward_hook(
        lambda _module, _in, given, _out: held.append(given["attention_mask"].numel()), with_kwargs=True
    )
    found = generate(talker, PROMPTS, settings=SETTINGS, limits=limits)
    hook.remove()
    assert 0 < max(held) <= limits.max_tokens
    assert [one.token_ids for one in found] == [
        one.token_ids for one in generate(talker, PROMPTS, settings=SETTINGS)
    ]


def test_confidence_at_each_temperature_is_the_same_whether_settled_or_stepped(
    talker: LoadedModel, replies: list[Generated]
) -> None:
    tempered = replace(talker, confidence_temperatures=TEMPERATURES)
    rows = with_answers(talker, replies)
    stepped = generate(tempered, PROMPTS, settings=SETTINGS)
    for one, other in zip(in_order(list(answers(tempered, rows, settings=SETTINGS))), stepped, strict=True):
        assert one.reply.tempered_logprobs == pytest.approx(other.tempered_logprobs, rel=1e-3, abs=1e-3)


def test_logits_that_are_not_finite_settle_nothing(tiny: LoadedModel) -> None:
    hook = tiny.model.lm_head.register_forward_hook(lambda _module, _in, out: torch.full_like(out, torch.nan))
    (found,) = answers(tiny, [EncodedRow((5, 6), answer=(7, tiny.end_of_turn_id))], settings=SETTINGS)
    hook.remove()
    assert (found.score.loss, found.score.problem) == (None, "the loss is nan")
    assert (found.reply.finish_reason, found.reply.confidence) == ("error", None)
