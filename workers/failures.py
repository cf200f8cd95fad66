"""What follows from each class of training failure: one table, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from workers.backoff import Backoff


@dataclass(frozen=True)
class Policy:
    """Whether trying again can help, after what wait, and whether the job itself is at fault."""

    can_retry: bool
    rejects: bool = False
    backoff: Backoff | None = None


RETRY = Policy(can_retry=True)
FAIL = Policy(can_retry=False)
REJECT = Policy(can_retry=False, rejects=True)

# What is in the way goes away by itself, or a person sees to it: trying again at once would not help.
LATER = Policy(can_retry=True, backoff=Backoff(first_seconds=20, cap_seconds=600))

POLICIES: dict[str, Policy] = {
    "data": REJECT,  # the same rows would be refused again
    "config": REJECT,
    "model": FAIL,  # the parent checkpoint cannot be loaded
    "parent": FAIL,  # there is no checkpoint to start from
    "diverged": FAIL,  # the same seed would diverge at the same step
    "out_of_memory": FAIL,  # the trainer already went down to one row
    "disk": LATER,  # space may be made meanwhile
    "network": LATER,
    "orphaned": RETRY,
    "killed": RETRY,
    "internal": RETRY,
    "worker_lost": RETRY,
}


def policy_for(kind: str) -> Policy:
    """The policy for a class of failure; an unknown class is tried again, at most three times."""
    return POLICIES.get(kind, RETRY)
