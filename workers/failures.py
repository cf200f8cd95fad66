"""What follows from each class of training failure: one table, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """Whether trying again can help, and whether the job itself is at fault."""

    can_retry: bool
    rejects: bool = False


RETRY = Policy(can_retry=True)
FAIL = Policy(can_retry=False)
REJECT = Policy(can_retry=False, rejects=True)

POLICIES: dict[str, Policy] = {
    "data": REJECT,  # the same rows would be refused again
    "config": REJECT,
    "model": FAIL,  # the parent checkpoint cannot be loaded
    "parent": FAIL,  # there is no checkpoint to start from
    "diverged": FAIL,  # the same seed would diverge at the same step
    "out_of_memory": FAIL,  # the trainer already went down to one row
    "disk": RETRY,  # space may have been made
    "orphaned": RETRY,
    "killed": RETRY,
    "internal": RETRY,
    "worker_lost": RETRY,
}


def policy_for(kind: str) -> Policy:
    """The policy for a class of failure; an unknown class is tried again, at most three times."""
    return POLICIES.get(kind, RETRY)
