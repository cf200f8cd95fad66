"""What follows from each class of training failure: one table, in one place."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from registry import queue
from registry.commands import ATTEMPTS_A_RETRY
from registry.records import Lease, TrainingJob
from registry.store import Transaction
from workers import oom_kills
from workers.backoff import Backoff, Draw


@dataclass(frozen=True)
class Policy:
    """Whether trying again can help, after what wait, and whether the job itself is at fault.

    The first `num_at_once` failures are tried again at once; `backoff` is for those that follow.
    """

    can_retry: bool
    rejects: bool = False
    backoff: Backoff | None = None
    num_at_once: int = 0

    def wait_seconds(self, *, num_failures: int, draw: Draw = random.random) -> float:
        """After so many failures, 1 or more; 0 where the next attempt may begin at once."""
        num_waits = num_failures - self.num_at_once
        if self.backoff is None or num_waits < 1:
            return 0.0
        return self.backoff.wait_seconds(num_failures=num_waits, draw=draw)


FAIL = Policy(can_retry=False)
REJECT = Policy(can_retry=False, rejects=True)

# What is in the way goes away by itself, or a person sees to it: trying again at once would not help.
LATER = Policy(can_retry=True, backoff=Backoff(first_seconds=20, cap_seconds=600))

# Most often it happens once. Where it comes again something is wrong with the host, and three attempts
# within seconds would meet the same.
SOON = Policy(can_retry=True, backoff=Backoff(first_seconds=30, cap_seconds=600), num_at_once=1)

WORKER_LOST = "worker_lost"
POLICIES: dict[str, Policy] = {
    "data": REJECT,  # the same rows would be refused again
    "config": REJECT,
    "model": FAIL,  # the parent checkpoint cannot be loaded
    "parent": FAIL,  # there is no checkpoint to start from
    "diverged": FAIL,  # the same seed would diverge at the same step
    # One row, the model or its moments did not fit, though the guard had looked before: a person must choose.
    "out_of_memory": FAIL,
    "disk": LATER,  # space may be made meanwhile
    "network": LATER,  # a file or a peer on another machine
    "killed": SOON,
    oom_kills.KIND: SOON,  # its steps go on in smaller parts
    "internal": SOON,
    WORKER_LOST: SOON,
}


def policy_for(kind: str) -> Policy:
    """The policy for a class of failure; an unknown class is tried again, at most three times."""
    return POLICIES.get(kind, SOON)


def end_attempt(
    tx: Transaction, job: TrainingJob, *, kind: str, message: str, lease: Lease, actor: str
) -> TrainingJob:
    """End an attempt badly, as the table says."""
    policy = policy_for(kind)
    if policy.rejects:
        return queue.reject(tx, job, kind=kind, message=message, lease=lease, actor=actor)
    return queue.record_problem(
        tx,
        job,
        kind=kind,
        message=message,
        can_retry=policy.can_retry,
        actor=actor,
        lease=lease,
        not_before_at=_not_before(policy, job=job, now=tx.now),
    )


def requeue_abandoned(tx: Transaction, *, actor: str) -> list[TrainingJob]:
    """End the attempts whose worker is dead or cut off, as the table says."""
    policy = policy_for(WORKER_LOST)
    return queue.requeue_abandoned(
        tx,
        actor=actor,
        kind=WORKER_LOST,
        can_retry=policy.can_retry,
        not_before=lambda job: _not_before(policy, job=job, now=tx.now),
    )


def _not_before(policy: Policy, *, job: TrainingJob, now: datetime) -> datetime | None:
    """`job retry` grants more attempts, and the waits begin anew with them."""
    num_before = max(0, job.max_attempts - ATTEMPTS_A_RETRY)
    wait_seconds = policy.wait_seconds(num_failures=max(1, job.attempts + 1 - num_before))
    return now + timedelta(seconds=wait_seconds) if wait_seconds else None
