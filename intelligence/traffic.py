"""Judges a release by what became of its first requests and of its server: pure, from what the server tells.

The share of requests that failed on the server's account, with its Wilson interval, against a limit: what
breaks the limit by its whole interval is withdrawn. Few requests, or none, are no evidence of either. A
release that kills its server counts no requests; what tells of it is a server that does not stay up.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from intelligence.statistics import wilson_interval
from registry.records import Estimate, Record
from registry.serving import ReleaseTraffic, ServerHealth
from registry.states import Outcome

TOLERANCE_SECONDS = 1.0  # between a look and the note that it was taken


class TrafficLimits(Record):
    """When a new release's requests count against it."""

    watch_seconds: float = Field(default=300.0, gt=0, description="after it became active")
    min_requests: int = Field(default=20, ge=1, description="below it nothing is judged")
    # A healthy server fails none; what is above it by the whole interval is no accident.
    max_error_share: float = Field(default=0.05, ge=0, lt=1)


@dataclass(frozen=True)
class TrafficVerdict:
    """`share` is None where nothing is judged."""

    outcome: Outcome
    reason: str
    share: Estimate | None = None


def judge_traffic(traffic: ReleaseTraffic | None, *, limits: TrafficLimits) -> TrafficVerdict:
    """`regressed` where the limit is broken by the whole interval, `watch` where by the estimate only."""
    num_requests = 0 if traffic is None else traffic.num_requests
    if traffic is None or num_requests < limits.min_requests:
        return TrafficVerdict(
            Outcome.UNKNOWN,
            f"{num_requests} requests are too few to judge; {limits.min_requests} are needed.",
        )
    share = wilson_interval(min(traffic.num_errors, num_requests), num_trials=num_requests)
    reason = (
        f"{traffic.num_errors} of {num_requests} requests failed "
        f"({share.value:.1%}, 95 % interval {share.low:.1%} to {share.high:.1%}; "
        f"limit {limits.max_error_share:.1%})."
    )
    return TrafficVerdict(_outcome(share, limit=limits.max_error_share), reason, share)


def trouble_of(health: ServerHealth | None, *, since_seconds: float) -> str:
    """What is wrong with a server that was looked at so long ago; empty where nothing shows.

    `health` is None where nobody listens, found on the server's own host. One that is loading is neither
    well nor in trouble; nor is one whose model's own process died: it is started again by itself.
    """
    if health is None:
        return "it is down"
    if health.uptime_seconds < since_seconds - TOLERANCE_SECONDS:
        return f"it began anew {health.uptime_seconds:.0f} s ago"
    if health.status == "error" and health.release_id is None:
        return f"it serves nothing: {health.problem}"
    return ""


def _outcome(share: Estimate, *, limit: float) -> Outcome:
    if share.low > limit:
        return Outcome.REGRESSED
    return Outcome.WATCH if share.value > limit else Outcome.PASS
