"""What is alarming, since when, and what is not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from registry.progress import MicroEvaluation
from registry.values import Estimate
from trainer.monitoring.alerts import (
    AlertBook,
    Finding,
    SpeedRecord,
    gap_finding,
    not_finite_finding,
    throughput_finding,
    variance_finding,
)
from trainer.testing import NOON

SLOW = Finding("throughput", "slow", value=50.0, limit=60.0)


def evaluation(**fields: Any) -> MicroEvaluation:
    common = {"step": 7, "num_validation_tokens": 9, "num_training_tokens": 9, "duration_seconds": 0.1}
    return MicroEvaluation.model_validate(common | fields)


def gap(value: float, *, half: float) -> MicroEvaluation:
    estimate = Estimate(value=value, low=value - half, high=value + half, num_samples=64)
    return evaluation(gap=estimate, gap_state="watch")


def test_a_speed_that_fell_under_60_percent_of_the_first_reports_is_an_alert_with_value_and_limit() -> None:
    found = throughput_finding([100.0] * 20 + [59.0] * 5)
    assert found == Finding(
        "throughput", "59 tokens/s is 59% of the 100 that it began with", value=59.0, limit=60.0
    )
    assert throughput_finding([100.0] * 20 + [61.0] * 5) is None


def test_one_slow_report_or_too_few_are_no_alert() -> None:
    assert throughput_finding([100.0] * 24 + [1.0]) is None
    assert throughput_finding([100.0] * 10 + [1.0] * 5) is None


def test_the_baseline_stays_that_of_the_first_reports_and_leaves_out_the_one_that_warms_up() -> None:
    record = SpeedRecord()
    found = [record.add(speed) for speed in [1.0] + [100.0] * 200 + [50.0] * 5]
    assert found[200] is None
    assert found[-1] is not None
    assert found[-1].limit == 60.0


def test_losses_that_spread_more_than_their_mean_are_an_alert() -> None:
    calm, wild = [(2.0, 1), (4.0, 2)] * 10, [(0.1, 1)] * 18 + [(9.0, 1)] * 2
    assert variance_finding(calm) is None
    found = variance_finding(wild)
    assert found is not None
    assert found.value is not None
    assert found.limit == pytest.approx(0.99)
    assert found.value > found.limit
    assert variance_finding(wild[:19]) is None


def test_a_gap_over_its_limit_is_an_alert_unless_it_may_be_chance() -> None:
    assert gap_finding(gap(0.31, half=0.1)) is not None
    assert gap_finding(gap(0.31, half=0.4)) is None
    assert gap_finding(gap(0.29, half=0.1)) is None
    assert gap_finding(None) is None


def test_a_loss_that_is_not_finite_is_an_alert_and_too_few_rows_are_none() -> None:
    assert not_finite_finding(evaluation(problem="the loss is not finite at step 7")) is not None
    assert not_finite_finding(evaluation(problem="only one sequence was learnt so far")) is None


def test_an_alert_keeps_its_beginning_while_it_holds_and_is_cleared_and_raised_anew() -> None:
    book = AlertBook()
    first = book.update([SLOW, None], step=10, now=NOON)
    later = book.update([SLOW], step=20, now=NOON + timedelta(minutes=1))
    assert [(alert.since_step, alert.raised_at) for alert in (*first, *later)] == [(10, NOON)] * 2
    assert book.update([None], step=30, now=NOON + timedelta(minutes=2)) == ()
    again = book.update([SLOW], step=40, now=NOON + timedelta(minutes=3))
    assert [alert.since_step for alert in again] == [40]
