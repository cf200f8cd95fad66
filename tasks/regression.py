"""Doors of the regression monitor: judge on an intelligence host, record beside the registry."""

from __future__ import annotations

import numpy as np

from intelligence.regression import judge
from registry import asks, judgements
from registry.files import sha256_text
from registry.messages import RegressionRequest
from registry.records import Verdict
from tasks.door import door
from workers import projections
from workers.context import Context, Message
from workers.pipeline import owed


@door("regression.check")
def check(request: RegressionRequest, context: Context) -> None:
    """Compare a candidate with the anchored baseline, example by example; send the verdict home."""
    # Seeded by what is judged, so that the same evidence gives the same interval.
    seed = int(sha256_text(request.candidate.evaluation_id)[:8], 16)
    verdict = judge(request, now=context.registry.clock(), rng=np.random.default_rng(seed))
    context.deliver(Message("regression.record", verdict))


@door("regression.record")
def record(verdict: Verdict, context: Context) -> None:
    """Save a verdict once; accept or quarantine its checkpoint; ask for what follows."""
    with context.registry.transaction() as tx:
        judgements.record_verdict(tx, verdict=verdict, actor=context.actor)
        asks.settle(tx, kind="verdict", subject_id=verdict.evaluation_id)
        messages = owed(tx, settings=context.settings)
    context.ring(messages)
    projections.refresh(context.registry, settings=context.settings)
