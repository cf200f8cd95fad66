from datetime import UTC, datetime

import pytest

from intelligence.traffic import TrafficLimits, judge_traffic
from registry.serving import ReleaseTraffic
from registry.states import Outcome

LIMITS = TrafficLimits(min_requests=20, max_error_share=0.05)
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def traffic(num_errors: int, *, of: int) -> ReleaseTraffic:
    return ReleaseTraffic(release_id="r1", since=SINCE, num_requests=of, num_errors=num_errors)


@pytest.mark.parametrize(
    ("num_errors", "num_requests", "outcome"),
    [
        (0, 0, Outcome.UNKNOWN),
        (19, 19, Outcome.UNKNOWN),
        (0, 20, Outcome.PASS),
        (1, 20, Outcome.PASS),
        (2, 20, Outcome.WATCH),
        (4, 20, Outcome.REGRESSED),
        (20, 20, Outcome.REGRESSED),
        (60, 1000, Outcome.WATCH),
        (70, 1000, Outcome.REGRESSED),
    ],
)
def test_a_release_is_withdrawn_where_the_whole_interval_breaks_the_limit(
    num_errors: int, num_requests: int, outcome: Outcome
) -> None:
    assert judge_traffic(traffic(num_errors, of=num_requests), limits=LIMITS).outcome is outcome


def test_a_server_that_tells_no_counts_is_unknown() -> None:
    verdict = judge_traffic(None, limits=LIMITS)
    assert (verdict.outcome, verdict.share) == (Outcome.UNKNOWN, None)


def test_the_reason_bears_counts_and_interval() -> None:
    verdict = judge_traffic(traffic(10, of=40), limits=LIMITS)
    assert verdict.reason == ("10 of 40 requests failed (25.0%, 95 % interval 14.2% to 40.2%; limit 5.0%).")
