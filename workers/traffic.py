"""A new release's first minutes: the server's own counters decide whether it stays, and whether it stays up.

What the served release failed is asked of its server while it is young; client errors and cancelled requests
are not counted there. A server that is down or starts again and again counts nothing, so that is looked at
too, on its own host: a host that cannot be asked proves nothing. A release that was returned to is not
judged: behind it lies only what is older still.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from config.settings import Settings
from deploy.errors import DeployError, ServerDown
from intelligence.traffic import judge_traffic, trouble_of
from registry import accuracy, asks, lineage
from registry.messages import Nothing
from registry.records import Deployment
from registry.serving import ServerHealth
from registry.states import AlertLevel, AlertSource, Outcome
from registry.store import Registry, Transaction
from workers.context import Message
from workers.releases import open_serving_host

log = logging.getLogger(__name__)
LOOK_SECONDS = 20.0
LOOK, TROUBLE = "server looked at", "server in trouble"
MAX_TROUBLED = 3


@dataclass(frozen=True)
class Failing:
    """A served release that fails its requests, or whose server does not stay up; `reason` as it is kept."""

    deployment: Deployment
    reason: str
    is_down: bool = False


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
        health = _ask(settings)
    except DeployError as error:
        log.info("%s is not judged: %s", watched.id, error)
        return None
    return _failing_requests(watched, health=health, settings=settings) or _failing_server(
        registry, watched, health=health
    )


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
            message=f"Release {failing.deployment.id} does not hold: {failing.reason}",
            actor=actor,
        )


def _ask(settings: Settings) -> ServerHealth | None:
    """None where its own host says that it is down; a host that cannot be asked proves nothing."""
    with open_serving_host(settings) as (_target, door):
        try:
            return door.health()
        except ServerDown:
            return None


def _failing_requests(
    watched: Deployment, *, health: ServerHealth | None, settings: Settings
) -> Failing | None:
    if health is None or health.traffic is None or health.traffic.release_id != watched.id:
        return None
    verdict = judge_traffic(health.traffic, limits=settings.deployment.traffic)
    log.info("%s: %s: %s", watched.id, verdict.outcome, verdict.reason)
    if verdict.outcome is not Outcome.REGRESSED:
        return None
    return Failing(watched, f"its first requests: {verdict.reason}")


def _failing_server(
    registry: Registry, watched: Deployment, *, health: ServerHealth | None
) -> Failing | None:
    """After so many looks in trouble, none of them well between: one restart by a person is no such row."""
    with registry.transaction() as tx:
        last = asks.last_put(tx, kind=LOOK, subject_id=watched.id) or watched.activated_at or tx.now
        asks.put(tx, kind=LOOK, subject_id=watched.id)
        trouble = trouble_of(health, since_seconds=(tx.now - last).total_seconds())
        num_troubled = 0
        if trouble:
            num_troubled = asks.put(tx, kind=TROUBLE, subject_id=watched.id).num_asked
        elif health is not None and health.release_id == watched.id:
            asks.forget(tx, kind=TROUBLE, subject_id=watched.id)
    if not trouble:
        return None
    log.warning("%s: in %d looks running its server was in trouble: %s", watched.id, num_troubled, trouble)
    if num_troubled < MAX_TROUBLED:
        return None
    reason = f"its server does not stay up: {trouble}, and was in trouble {num_troubled} looks running"
    return Failing(watched, reason, is_down=True)


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
