"""How much of the data a run has not used yet."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.batching import BatchPlan
from trainer.core.data import TokenizedDataset
from trainer.core.run import UsedRows

sequences_of = st.lists(st.tuples(st.integers(2, 40), st.integers(1, 3)), min_size=1, max_size=40)


def dataset_of(rows: list[tuple[int, int]]) -> TokenizedDataset:
    """Rows of so many sequences of such a length; every fourth row was dropped and has no number."""
    lengths = [length for length, count in rows for _ in range(count)]
    numbers = [number + number // 3 + 1 for number, (_, count) in enumerate(rows) for _ in range(count)]
    starts = np.cumsum([0, *lengths])
    return TokenizedDataset(
        tokens=np.zeros(starts[-1], dtype=np.uint32),
        is_answer=np.ones(starts[-1], dtype=np.bool_),
        starts=starts,
        row_numbers=np.array(numbers),
        num_rows=len(rows),
        num_dropped_rows=0,
    )


@given(rows=sequences_of, budget=st.integers(10, 200), first=st.integers(0, 50))
def test_unused_rows_are_those_that_no_step_met_wherever_counting_begins(
    rows: list[tuple[int, int]], budget: int, first: int
) -> None:
    dataset = dataset_of(rows)
    plan = BatchPlan(lengths=dataset.lengths, tokens_per_batch=budget, num_epochs=2, seed=1)
    used = UsedRows(dataset, plan=plan)
    for step in range(min(first, plan.num_steps), plan.num_steps + 1):
        met = {int(row) for earlier in range(step) for row in dataset.row_numbers[plan.batch(earlier)]}
        assert used.num_unused(step) == len(rows) - len(met)
