from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from inference.batches import BatchLimits
from inference.model import LoadedModel
from inference.prompts import EncodedRow
from inference.scoring import score, token_losses


def some_rows(num_rows: int, *, seed: int = 0) -> list[EncodedRow]:
    draw = random.Random(seed)
    return [
        EncodedRow(
            prompt=tuple(draw.randrange(4, 99) for _ in range(draw.randrange(1, 60))),
            answer=(*(draw.randrange(4, 99) for _ in range(draw.randrange(0, 12))), 3),
        )
        for _ in range(num_rows)
    ]


def naive_loss(loaded: LoadedModel, row: EncodedRow) -> float:
    """One row, no padding, log-softmax over everything."""
    ids = torch.tensor([row.prompt + row.answer])
    with torch.inference_mode():
        logprobs = loaded.model(input_ids=ids).logits[0].log_softmax(dim=-1)
    first = len(row.prompt)
    return -sum(float(logprobs[first + i - 1, token]) for i, token in enumerate(row.answer)) / len(row.answer)


LIMITS = [BatchLimits(), BatchLimits(max_rows=3), BatchLimits(max_tokens=1)]


@pytest.mark.parametrize("limits", LIMITS)
def test_batched_scores_equal_one_row_at_a_time(tiny: LoadedModel, limits: BatchLimits) -> None:
    rows = some_rows(24)
    scores = score(tiny, rows, limits=limits)
    assert [result.loss for result in scores] == pytest.approx(
        [naive_loss(tiny, row) for row in rows], abs=1e-5
    )
    assert [result.num_tokens for result in scores] == [len(row.answer) for row in rows]
    assert len({result.loss for result in scores}) == len(rows)


def test_steep_weights_change_scores_by_float32_rounding_alone(talker: LoadedModel) -> None:
    rows = some_rows(24, seed=1)
    losses = [result.loss for result in score(talker, rows)]
    assert losses == pytest.approx([naive_loss(talker, row) for row in rows], rel=1e-5)


def test_only_answer_positions_get_logits(tiny: LoadedModel) -> None:
    kept = []
    hook = tiny.model.lm_head.register_forward_hook(lambda _module, _in, out: kept.append(out.shape[0]))
    prompts = [tuple(range(4, 90)), tuple(range(5, 90))]
    score(tiny, [EncodedRow(prompt=prompt, answer=(9, 3)) for prompt in prompts])
    hook.remove()
    assert kept == [4]


def test_rows_that_share_a_prompt_score_as_they_do_alone_and_read_it_once(talker: LoadedModel) -> None:
    prompts = [tuple(range(5, 5 + length)) for length in (40, 7, 90)]
    answers = [(9,), (9, 3), (30, 31, 32, 33, 3), (8, 3)]
    rows = [EncodedRow(prompt=prompt, answer=answer) for answer in answers for prompt in prompts]
    rows.append(EncodedRow(prompt=(77, 78), answer=(9, 3)))
    widths: list[int] = []
    decoder = talker.model.get_decoder()
    hook = decoder.register_forward_hook(
        lambda _module, _in, out: widths.append(out.last_hidden_state.shape[1])
    )
    found = score(talker, rows)
    hook.remove()
    assert [one.loss for one in found] == pytest.approx([naive_loss(talker, row) for row in rows], rel=1e-5)
    assert sorted(widths) == [4, 4, 90]  # the lonely row, the rest of the answers, the prompts
    alone = [score(talker, [row])[0] for row in rows]
    assert [one.is_greedy for one in found] == [one.is_greedy for one in alone]


@pytest.mark.parametrize("limits", [BatchLimits(max_rows=5), BatchLimits(max_tokens=200)])
def test_how_groups_are_cut_changes_no_score(talker: LoadedModel, limits: BatchLimits) -> None:
    rows = [EncodedRow(prompt=row.prompt, answer=(9, end)) for row in some_rows(12) for end in (3, 4, 5)]
    whole, cut = score(talker, rows), score(talker, rows, limits=limits)
    assert [one.loss for one in cut] == pytest.approx([one.loss for one in whole], rel=1e-5)


def test_a_nan_loss_is_never_a_number(talker: LoadedModel) -> None:
    row = some_rows(1)[0]
    weight = talker.model.get_input_embeddings().weight
    kept = weight[row.prompt[-1]].clone()
    with torch.no_grad():
        weight[row.prompt[-1]] = math.nan
    result = score(talker, [row])[0]
    with torch.no_grad():
        weight[row.prompt[-1]] = kept
    assert result.loss is None
    assert result.problem == "the loss is nan"


def test_an_impossible_token_has_an_unknown_loss_not_an_infinite_one(tiny: LoadedModel) -> None:
    hook = tiny.model.lm_head.register_forward_hook(
        lambda _module, _in, out: out.index_fill(-1, torch.tensor([9]), -math.inf)
    )
    result = score(tiny, [EncodedRow(prompt=(5, 6), answer=(9, 3))])[0]
    hook.remove()
    assert (result.loss, result.problem) == (None, "the loss is inf")


def test_a_row_beyond_the_models_positions_is_unknown_and_spares_its_neighbours(tiny: LoadedModel) -> None:
    short = replace(tiny, max_positions=10)
    fits = EncodedRow(prompt=(5,) * 8, answer=(9, 3))
    long = EncodedRow(prompt=(5,) * 9, answer=(9, 3))
    known, unknown = score(short, [fits, long])
    assert known.loss is not None
    assert unknown.loss is None
    assert "11 tokens; the model reads 10" in unknown.problem


def test_no_rows_give_no_scores(tiny: LoadedModel) -> None:
    assert score(tiny, []) == []


def test_a_large_vocabulary_is_added_up_as_exactly_as_float32_can() -> None:
    """`cross_entropy` loses up to 5e-4 nats a token here."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.zeros(64, 151_936)
    logits[:, :103] = 5 * torch.randn(64, 103, generator=draw)
    expected = torch.randint(0, 103, (64,), generator=draw)
    exact = torch.nn.functional.cross_entropy(logits.double(), expected, reduction="none")
    assert (token_losses(logits, expected=expected) - exact).abs().max() < 1e-5
