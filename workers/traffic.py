"""A new release's first minutes: the server's own counters decide whether it stays.

What the served release failed is asked of its server while it is young; client errors and cancelled requests
are not counted there. A release that was returned to is not judged: behind it lies only what is older still.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from config.settings import Settings
from deploy.errors import DeployError
from intelligence.traffic import TrafficVerdict, judge_traffic
from registry import accuracy, asks, lineage
from registry.messages import Nothing
from registry.records import Deployment
from registry.states import AlertLevel, AlertSource, Outcome
from registry.store import Registry, Transaction
from workers.context import Message
from workers.releases import open_serving_host

log = logging.getLogger(__name__)
LOOK_SECONDS = 20.0


@dataclass(frozen=True)
class Failing:
    """A served release that fails its requests."""

    deployment: Deployment
    verdict: TrafficVerdict

    @property
    def reason(self) -> str:
        """As the registry keeps it."""
        return f"its first requests: {self.verdict.reason}"


def owed(tx: Transaction, *, settings: Settings) -> Iterator[Message]:
    """The next look at a young release."""
    watched = _watched(tx, settings=settings)
    if watched is None:
        return
    if asks.is_due(tx, kind="traffic", subject_id=watched.id, retry_after_seconds=LOOK_SECONDS):
        asks.put(tx, kind="traffic", subject_id=watched.id)
        yield Message("deployment.watch", Nothing(), expires_seconds=LOOK_SECONDS)


def look(registry: Registry, *, settings: Settings) -> Failing | None:
    """Ask the server; None where nothing speaks against its release, or where nothing can be known."""
    with registry.reading() as tx:
        watched = _watched(tx, settings=settings)
    if watched is None:
        return None
    try:
        with open_serving_host(settings) as (_target, door):
            health = door.health()
    except DeployError as error:
        log.info("%s is not judged: %s", watched.id, error)
        return None
    if health.traffic is None or health.traffic.release_id != watched.id:
        return None
    verdict = judge_traffic(health.traffic, limits=settings.deployment.traffic)
    log.info("%s: %s: %s", watched.id, verdict.outcome, verdict.reason)
    return Failing(watched, verdict) if verdict.outcome is Outcome.REGRESSED else None


def tell(registry: Registry, failing: Failing, *, actor: str) -> None:
    """Alert people, once a checkpoint."""
    with registry.transaction() as tx:
        suite = lineage.active_suite(tx)
        if suite is None:
            return
        accuracy.raise_alert(
            tx,
            source=AlertSource.SERVING,
            level=AlertLevel.CRITICAL,
            checkpoint_id=failing.deployment.checkpoint_id,
            suite_id=suite.id,
            message=f"Release {failing.deployment.id} fails {failing.reason}",
            actor=actor,
        )


def _watched(tx: Transaction, *, settings: Settings) -> Deployment | None:
    """The active release while it is young, unless it was returned to."""
    active = lineage.active_deployment(tx)
    if active is None or active.activated_at is None:
        return None
    if tx.now - active.activated_at > timedelta(seconds=settings.deployment.traffic.watch_seconds):
        return None
    newest = tx.find(Deployment, newest_first="generation", limit=1)
    is_return = newest[0].generation > active.generation and newest[0].activated_at is not None
    return None if is_return else active
