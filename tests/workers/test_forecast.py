"""Forecasts: what is known is a number with its error, what is not is unknown; never 0, never NaN."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.history import PastRun
from workers.forecast import (
    NO_PAST,
    NO_SPEED,
    NOTHING_RUNS,
    Sample,
    Span,
    WaitingJob,
    collected,
    forecast,
    pace_of,
    remaining,
    remaining_by_speed,
    starts,
)

NOW = datetime(2027, 1, 1, 12, tzinfo=UTC)


def reports(*pairs: tuple[int, float]) -> list[Sample]:
    return [Sample(step=step, at=NOW + timedelta(seconds=seconds)) for step, seconds in pairs]


def past(*pairs: tuple[float, float]) -> list[PastRun]:
    return [PastRun(job_id="job-a", num_rows=rows, seconds=seconds) for rows, seconds in pairs]


def waiting(*num_rows: float) -> list[WaitingJob]:
    return [WaitingJob(id=f"job-{index}", num_rows=rows) for index, rows in enumerate(num_rows)]


@pytest.mark.parametrize("samples", [[], reports((5, 0)), reports((5, 0), (5, 10)), reports((5, 0), (6, 0))])
def test_before_two_reports_of_different_steps_the_end_is_unknown(samples: list[Sample]) -> None:
    assert remaining(samples, num_steps=100) is None


def test_two_reports_give_the_end_without_its_error_and_three_with_it() -> None:
    two = forecast(remaining(reports((10, 0), (20, 30)), num_steps=100), now=NOW)
    assert two is not None
    assert (two.seconds, two.low_seconds, two.high_seconds) == (240, None, None)
    three = forecast(remaining(reports((10, 0), (20, 30), (30, 50)), num_steps=100), now=NOW)
    assert three is not None
    assert three.seconds == pytest.approx(175)
    assert three.low_seconds is not None
    assert three.high_seconds is not None
    assert three.low_seconds < 175 < three.high_seconds
    assert three.at == NOW + timedelta(seconds=175)


def test_an_even_speed_has_no_error_and_an_uneven_one_a_larger_the_more_uneven() -> None:
    def width(*pairs: tuple[int, float]) -> float:
        found = forecast(remaining(reports(*pairs), num_steps=40), now=NOW)
        assert found is not None
        return (found.high_seconds or 0) - (found.low_seconds or 0)

    assert width((0, 0), (10, 10), (20, 20), (30, 30)) == pytest.approx(0)
    slight = width((0, 0), (10, 9), (20, 20), (30, 30))
    assert 0 < slight < width((0, 0), (10, 5), (20, 20), (30, 30))


def test_a_run_that_was_resumed_is_measured_anew() -> None:
    samples: tuple[Sample, ...] = ()
    for sample in reports((10, 0), (20, 10), (15, 60), (25, 70)):
        samples = collected(samples, sample=sample)
    assert [sample.step for sample in samples] == [15, 25]


def test_the_same_report_seen_twice_counts_once_and_old_ones_are_forgotten() -> None:
    samples: tuple[Sample, ...] = ()
    for sample in reports(*((step, float(step)) for step in range(100))):
        samples = collected(collected(samples, sample=sample), sample=sample)
    assert samples[0].step == 70
    assert all(after.step == before.step + 1 for before, after in pairwise(samples))


def test_the_true_end_lies_inside_the_interval_about_as_often_as_it_claims() -> None:
    import random

    rng = random.Random(7)
    inside = 0
    for _ in range(400):
        seconds = [rng.uniform(0.5, 1.5) for _ in range(100)]
        pairs = [(step, sum(seconds[:step])) for step in range(0, 41, 4)]
        found = forecast(remaining(reports(*pairs), num_steps=100), now=NOW)
        assert found is not None
        inside += (found.low_seconds or 0) <= sum(seconds[40:]) <= (found.high_seconds or 0)
    assert 0.90 <= inside / 400 <= 0.99


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e9)), max_size=40),
    st.integers(1, 10**6),
)
def test_whatever_is_reported_the_end_is_a_finite_number_or_unknown(
    pairs: list[tuple[int, float]], num_steps: int
) -> None:
    samples: tuple[Sample, ...] = ()
    for sample in reports(*pairs):
        samples = collected(samples, sample=sample)
    forecast(remaining(samples, num_steps=num_steps), now=NOW)  # the record refuses NaN and the negative


@pytest.mark.parametrize(("step", "speed"), [(0, 100.0), (5, None), (5, 0.0)])
def test_one_report_without_a_speed_says_nothing(step: int, speed: float | None) -> None:
    found = remaining_by_speed(step=step, num_steps=10, num_tokens=500, tokens_per_second=speed, pace=None)
    assert found is None


def test_one_report_with_a_speed_takes_its_error_from_past_jobs() -> None:
    alone = remaining_by_speed(step=5, num_steps=10, num_tokens=500, tokens_per_second=100, pace=None)
    assert alone == Span(5.0, None, 1)
    pace = pace_of(past((100, 10), (100, 20), (100, 15)))
    beside = remaining_by_speed(step=5, num_steps=10, num_tokens=500, tokens_per_second=100, pace=pace)
    assert beside is not None
    assert beside.variance == pytest.approx(25 * (1 / 3) ** 2)


def test_the_start_is_what_is_left_of_the_running_job_and_the_jobs_ahead() -> None:
    pace = pace_of(past((100, 10), (200, 20)))
    found = starts(waiting(50, 70, 10), running=[Span(5, 1.0, 10)], pace=pace)
    assert [start.place for start in found.values()] == [1, 2, 3]
    seconds = [start.span.seconds for start in found.values() if start.span]
    assert seconds == pytest.approx([5, 10, 17])


def test_the_error_grows_along_the_queue() -> None:
    pace = pace_of(past((100, 8), (100, 12), (100, 10)))
    found = starts(waiting(100, 100, 100), running=[Span(5, 1.0, 10)], pace=pace)
    variances = [start.span.variance for start in found.values() if start.span and start.span.variance]
    assert len(variances) == 3
    assert variances == sorted(variances)
    # One job of relative variance 0.04 is ahead, by the mean of three: 100 * 0.04 * (1 + 1/3).
    assert variances[1] == pytest.approx(1 + 100 * 0.04 * 4 / 3)


def test_two_workers_share_the_queue() -> None:
    pace = pace_of(past((1, 1)))
    found = starts(waiting(10, 10, 10), running=[Span(5, None, 1), Span(6, None, 1)], pace=pace)
    assert [start.span.seconds for start in found.values() if start.span] == [5, 6, 15]


def test_where_nothing_is_known_the_start_is_unknown_with_the_reason() -> None:
    pace = pace_of(past((100, 10)))
    idle = starts(waiting(50), running=[], pace=pace)["job-0"]
    assert (idle.place, idle.span, idle.reason) == (1, None, NOTHING_RUNS)
    silent = starts(waiting(50), running=[None], pace=pace)["job-0"]
    assert (silent.span, silent.reason) == (None, NO_SPEED)
    first, second = starts(waiting(50, 50), running=[Span(5, 1.0, 10)], pace=None).values()
    assert first.span == Span(5, 1.0, 10)
    assert (second.place, second.span, second.reason) == (2, None, NO_PAST)
    assert pace_of([]) is None


def test_one_past_job_gives_a_start_without_error() -> None:
    found = starts(waiting(100, 1), running=[Span(5, 1.0, 10)], pace=pace_of(past((100, 10))))
    assert found["job-1"].span == Span(15, None, 1)
    line = forecast(found["job-1"].span, now=NOW)
    assert line is not None
    assert line.low_seconds is None


def test_a_job_that_may_not_begin_yet_begins_then_and_one_that_awaits_another_is_unknown() -> None:
    held = WaitingJob(id="held", num_rows=1, seconds_held=3600)
    awaits = WaitingJob(id="awaits", num_rows=1, obstacle="after job-x (queued)")
    found = starts([held, awaits], running=[Span(5, 1.0, 10)], pace=pace_of(past((1, 1))))
    assert found["held"].span == Span(3600, 1.0, 10)
    assert (found["awaits"].span, found["awaits"].reason) == (None, "after job-x (queued)")


def test_a_job_that_is_held_does_not_delay_the_one_behind_it() -> None:
    held = WaitingJob(id="held", num_rows=1, seconds_held=3600)
    behind = WaitingJob(id="behind", num_rows=1)
    found = starts([held, behind], running=[Span(5, 1.0, 10)], pace=pace_of(past((1, 1))))
    assert found["behind"].span == Span(5, 1.0, 10)


def test_what_lies_beyond_all_measure_is_unknown() -> None:
    assert forecast(Span(1e12, None, 1), now=NOW) is None
    assert forecast(Span(float("inf"), 1.0, 5), now=NOW) is None
