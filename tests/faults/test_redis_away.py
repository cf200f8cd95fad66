"""Redis refuses every connection for a while: training goes on, and everything goes on from there afterwards.

`make faults-long` keeps it away for ten minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.states import JobState
from tasks.testing import wait_for
from tests.faults import checker
from tests.faults.checker import Submitted
from tests.faults.stack import END_SECONDS, NUM_ROWS, FaultStack, run_as_root
from tests.faults.supervise import PARTS

AWAY_SECONDS = float(os.environ.get("AWAY_SECONDS") or 20)
BACK_SECONDS = 60.0
pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(420 + 2 * AWAY_SECONDS)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[FaultStack]:
    stack = FaultStack(tmp_path / "var")
    stack.start()
    left = None
    try:
        yield stack
    finally:
        left = stack.stop()
    assert left == []


def test_training_is_recorded_while_redis_is_away_and_no_part_needs_a_restart(stack: FaultStack) -> None:
    assert os.geteuid() == 0, "it needs root: it sets up a firewall rule"
    parts = {name: stack.part(name) for name in PARTS}
    waiting, training = _in_their_order(stack, stack.submit("before", random=random.Random(1)))

    with redis_away(stack):
        began = time.monotonic()
        step = stack.num_steps_taken(training)
        assert 0 < step < NUM_ROWS / 2, "the job must be in the middle for this to show anything"
        wait_for(
            lambda: _state(stack, training) is JobState.SUCCEEDED,
            seconds=END_SECONDS,
            message="the result is in the registry while Redis is away",
        )
        job = stack.job(training)
        assert job is not None
        assert job.progress is not None
        assert job.progress.step == job.progress.num_steps
        assert job.attempts == 0
        time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - began)))
        assert {name: stack.part(name) for name in PARTS} == parts
        assert _state(stack, waiting) is JobState.QUEUED

    back = time.monotonic()
    wait_for(
        lambda: _state(stack, waiting) is not JobState.QUEUED,
        seconds=BACK_SECONDS,
        message="the waiting job begins once Redis is back",
    )
    print(
        f"away for {back - began:.0f} s; work went on {time.monotonic() - back:.1f} s after Redis came back"
    )
    later = stack.submit("after", random=random.Random(2))
    stack.wait_until_ended([waiting, *later])

    submitted = [waiting, training, *later]
    assert [_state(stack, one) for one in submitted] == [JobState.SUCCEEDED] * 4
    assert {name: stack.part(name) for name in PARTS} == parts, "a part was restarted"
    with stack.reading() as tx:
        assert checker.check(tx, submitted=submitted, may_cost=frozenset()) == []


@contextlib.contextmanager
def redis_away(stack: FaultStack) -> Iterator[None]:
    """Each packet for Redis is answered by a reset: what a host without Redis does."""
    port = str(stack.settings.redis.port)
    rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", port, "-j", "REJECT", "--reject-with", "tcp-reset"]
    run_as_root("iptables", "-w", "-I", *rule)
    try:
        yield
    finally:
        run_as_root("iptables", "-w", "-D", *rule)


def _in_their_order(stack: FaultStack, submitted: list[Submitted]) -> tuple[Submitted, Submitted]:
    """(the one that waits, the one that trains), once both are jobs and one has taken its third step."""

    def under_way() -> list[Submitted]:
        return [one for one in submitted if stack.num_steps_taken(one) >= 3]

    wait_for(
        lambda: all(stack.job(one) for one in submitted) and bool(under_way()),
        seconds=END_SECONDS,
        message="one trains, one waits",
    )
    (training,) = under_way()
    (waiting,) = [one for one in submitted if one != training]
    return waiting, training


def _state(stack: FaultStack, submitted: Submitted) -> JobState | None:
    job = stack.job(submitted)
    return None if job is None else job.state
