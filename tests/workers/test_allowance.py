"""A side work's share of the time."""

from __future__ import annotations

from workers.allowance import Allowance


class Time:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def work(allowance: Allowance, time: Time, *, seconds: float) -> bool:
    with allowance.spending() as is_granted:
        if is_granted:
            time.now += seconds
    return is_granted


def test_little_work_is_always_granted() -> None:
    time = Time()
    allowance = Allowance(share=0.1, capacity_seconds=1, monotonic=time)
    for _ in range(100):
        assert work(allowance, time, seconds=0.01)
        time.now += 0.1


def test_much_work_gets_its_share_of_the_time_and_what_lay_ahead() -> None:
    time = Time()
    allowance = Allowance(share=0.1, capacity_seconds=1, monotonic=time)
    num_granted = 0
    while time.now < 200:
        num_granted += work(allowance, time, seconds=0.5)
        time.now += 0.01
    assert 0.5 * num_granted <= 1 + 0.1 * 100 + 0.5
    assert 0.5 * num_granted >= 0.1 * 100


def test_no_more_than_the_capacity_is_saved_up() -> None:
    time = Time()
    allowance = Allowance(share=0.1, capacity_seconds=1, monotonic=time)
    time.now += 1_000_000
    assert work(allowance, time, seconds=3)
    assert not work(allowance, time, seconds=3)
    time.now += 15
    assert not work(allowance, time, seconds=3)
    time.now += 4
    assert work(allowance, time, seconds=3)
