from hypothesis import given
from hypothesis import strategies as st

from workers.backoff import Backoff

BACKOFF = Backoff(first_seconds=2, cap_seconds=60)


def test_waits_double_up_to_their_cap() -> None:
    waits = [BACKOFF.wait_seconds(num_failures=number, draw=lambda: 1.0) for number in range(1, 8)]
    assert waits == [2, 4, 8, 16, 32, 60, 60]


@given(num_failures=st.integers(1, 10**9), share=st.floats(0, 1, exclude_max=True))
def test_a_wait_lies_between_half_and_all_of_what_it_may_be(num_failures: int, share: float) -> None:
    most = BACKOFF.wait_seconds(num_failures=num_failures, draw=lambda: 1.0)
    assert most / 2 <= BACKOFF.wait_seconds(num_failures=num_failures, draw=lambda: share) <= most <= 60


def test_two_that_failed_together_do_not_come_back_together() -> None:
    assert len({BACKOFF.wait_seconds(num_failures=3) for _ in range(20)}) > 10
