"""What a report says beside the bare numbers of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainer.core.report import loss_alerts, speed_alerts
from trainer.messages import Progress


def test_a_speed_that_fell_under_60_percent_of_the_first_reports_is_an_alert() -> None:
    assert speed_alerts([100.0] * 20 + [59.0] * 5) == ("59 tokens/s is 59% of the 100 that it began with",)
    assert speed_alerts([100.0] * 20 + [61.0] * 5) == ()


def test_one_slow_report_or_too_few_are_no_alert() -> None:
    assert speed_alerts([100.0] * 24 + [1.0]) == ()
    assert speed_alerts([100.0] * 10 + [1.0] * 5) == ()


def test_losses_that_spread_more_than_their_mean_are_an_alert() -> None:
    calm, wild = [(2.0, 1), (4.0, 2)] * 10, [(0.1, 1)] * 18 + [(9.0, 1)] * 2
    assert loss_alerts(calm) == ()
    assert "spreads by" in loss_alerts(wild)[0]
    assert loss_alerts(wild[:19]) == ()


def test_smoothed_loss_and_average_speed_cover_more_than_the_last_report(
    engine: Callable[..., Any], job: Callable[..., Any], said: list[Any]
) -> None:
    result = engine().run_job(job())
    reports = [message for message in said if isinstance(message, Progress)]
    assert reports[-1].smoothed_loss == pytest.approx(result.mean_loss)
    assert reports[-1].smoothed_loss != reports[-1].loss
    assert reports[0].average_tokens_per_second == reports[0].tokens_per_second
    assert 0 < reports[-1].average_tokens_per_second < 1e6
    assert reports[-1].alerts == ()
