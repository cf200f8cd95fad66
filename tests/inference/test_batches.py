from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.batches import BatchLimits, batches_by_length, pad_left
from inference.model import LoadedModel

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 8), st.integers(1, 1000))
def test_every_row_is_in_one_batch_and_no_batch_of_several_exceeds_the_limits(
    lengths: list[int], max_rows: int, max_tokens: int
) -> None:
    limits = BatchLimits(max_rows=max_rows, max_tokens=max_tokens)
    batches = list(batches_by_length(lengths, limits=limits))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or (len(batch) <= max_rows and len(batch) * longest <= max_tokens)


@given(LENGTHS, st.integers(1, 1000))
def test_logits_are_bounded_by_the_row_that_needs_most(lengths: list[int], max_logits: int) -> None:
    limits = BatchLimits(max_rows=100, max_tokens=1 << 30, max_logits=max_logits)
    logits = list(reversed(lengths))
    for batch in batches_by_length(lengths, limits=limits, logits_per_row=logits):
        assert len(batch) == 1 or len(batch) * max(logits[index] for index in batch) <= max_logits


def test_the_longest_rows_come_first() -> None:
    batches = batches_by_length([1, 9, 5], limits=BatchLimits(max_rows=1))
    assert list(batches) == [[1], [2], [0]]


def test_left_padding_aligns_ends_and_counts_positions_from_the_first_real_token(tiny: LoadedModel) -> None:
    ids, mask, positions = pad_left(tiny, [(7, 8, 9), (5,)])
    assert ids.tolist() == [[7, 8, 9], [tiny.pad_token_id, tiny.pad_token_id, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]
