"""What a report says beside the bare numbers of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainer.messages import Progress


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
    assert reports[-1].unmeasured_because == "no validation suite is active"
