import pytest

from registry.testing import make_shape
from trainer.dataset_shape import DatasetShape
from trainer.errors import ConfigError
from trainer.estimate import TrainingMode
from trainer.plan import parse_bytes, training_plan

GB = 10**9
SHAPE = make_shape()
DATA = DatasetShape(
    num_rows=10,
    num_dropped_rows=0,
    num_tokens=9000,
    num_answers=900,
    num_steps=3,
    longest_row=7,
    longest_row_tokens=4000,
    largest_batch_tokens=4000,
    answer_share=0.1,
)


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("24GB", 24 * GB), ("24 GiB", 24 << 30), ("0.5gb", GB // 2), ("1000", 1000)]
)
def test_an_amount_of_memory_is_read_with_its_unit(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "much", "24 apples", "-3GB"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no amount of memory"):
        parse_bytes(text)


def test_rows_with_few_answers_leave_room_for_more_tokens() -> None:
    common = {"capacity_bytes": 24 * GB, "reserve_bytes": GB // 2, "tokens_per_batch": 8192}
    plain = TrainingMode(cross_entropy="plain")
    blind = training_plan(SHAPE, mode=plain, **common)
    known = training_plan(SHAPE, mode=plain, dataset=DATA, **common)
    assert not blind.fits
    assert known.fits
    assert 2048 < blind.largest_tokens < 8192 < known.largest_tokens
    assert known.note == ""


def test_a_plan_says_what_chunks_save() -> None:
    plan = training_plan(
        SHAPE, capacity_bytes=24 * GB, reserve_bytes=GB // 2, tokens_per_batch=8192, mode=TrainingMode()
    )
    assert plan.fits
    assert plan.memory.peak < 24 * GB < plan.plain_peak_bytes
    assert plan.largest_tokens > 4 * plan.plain_largest_tokens > 0


def test_a_row_that_no_split_makes_fit_is_named() -> None:
    plan = training_plan(
        SHAPE,
        capacity_bytes=14 * GB,
        reserve_bytes=0,
        tokens_per_batch=8192,
        mode=TrainingMode(cross_entropy="plain"),
        dataset=DATA.changed(answer_share=1.0),
    )
    assert not plan.fits
    assert "Row 7 has 4000 tokens" in plan.note


def test_a_card_that_does_not_hold_the_states_says_so() -> None:
    plan = training_plan(
        SHAPE, capacity_bytes=8 * GB, reserve_bytes=0, tokens_per_batch=1, mode=TrainingMode()
    )
    assert (plan.largest_tokens, plan.fits) == (0, False)
    assert "alone do not fit" in plan.note


def test_the_budget_of_several_cards_is_that_of_all_together() -> None:
    common = {"capacity_bytes": 24 * GB, "reserve_bytes": GB // 2, "mode": TrainingMode()}
    one = training_plan(SHAPE, tokens_per_batch=4096, **common)
    two = training_plan(SHAPE, tokens_per_batch=8192, num_processes=2, **common)
    assert two.memory == one.memory
    assert two.tokens_per_batch == 2 * one.tokens_per_batch
    assert two.largest_tokens == 2 * one.largest_tokens
    assert two.plain_largest_tokens == 2 * one.plain_largest_tokens


def test_a_row_must_fit_on_one_of_several_cards() -> None:
    row = DATA.changed(answer_share=1.0, longest_row_tokens=6000, largest_batch_tokens=6000)
    plan = training_plan(
        SHAPE,
        capacity_bytes=24 * GB,
        reserve_bytes=GB // 2,
        tokens_per_batch=8192,
        mode=TrainingMode(cross_entropy="plain"),
        num_processes=2,
        dataset=row,
    )
    assert plan.largest_tokens > 6000 > plan.largest_tokens // 2
    assert "Row 7 has 6000 tokens" in plan.note
