"""Doors of deployment: serve the best, go back, and see to it that the new one answers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC

from deploy.errors import DeployError
from registry import leases
from registry.messages import DeploymentRequest, Nothing, RollbackRequest
from registry.records import Deployment, Lease
from registry.store import Registry
from tasks.door import door
from workers import projections, traffic
from workers.context import Context
from workers.releases import RESOURCE, Releases, open_releases


@door("deployment.sync_best")
def sync_best(request: DeploymentRequest, context: Context) -> Deployment:
    """Serve the best-ranked checkpoint, or the named one, if it is not served already."""
    with context.holding(RESOURCE) as lease, _releases(context, lease=lease) as releases:
        deployment = releases.sync(requested_checkpoint_id=request.checkpoint_id)
    _show(context)
    return deployment


@door("deployment.rollback")
def roll_back(request: RollbackRequest, context: Context) -> Deployment:
    """Serve the release before, or the named one."""
    with context.holding(RESOURCE) as lease, _releases(context, lease=lease) as releases:
        deployment = releases.roll_back(release_id=request.release_id, reason=request.reason)
    _show(context)
    return deployment


@door("deployment.watch")
def watch(_request: Nothing, context: Context) -> Deployment | None:
    """Withdraw the served release where too many of its first requests fail, or its server with it."""
    failing = traffic.look(context.registry, settings=context.settings)
    if failing is None:
        return None
    traffic.tell(context.registry, failing, actor=context.actor)
    with context.holding(RESOURCE) as lease, _releases(context, lease=lease) as releases:
        former = releases.withdraw(failing.deployment, reason=failing.reason, is_down=failing.is_down)
    _show(context)
    return former


def _releases(context: Context, *, lease: Lease | None) -> AbstractContextManager[Releases]:
    if lease is None:
        raise under_way(context.registry)
    return open_releases(
        registry=context.registry,
        settings=context.settings,
        lease=lease,
        actor=context.actor,
        message_id=context.message_id,
    )


def under_way(registry: Registry) -> DeployError:
    """Who deploys, and until when that is true of one that died: a live one renews its lease."""
    with registry.reading() as tx:
        lease = leases.holding(tx, resource=RESOURCE)
    if lease is None:
        return DeployError("Another deployment was under way until this moment.", remedy="Try again.")
    until = lease.expires_at.astimezone(UTC)
    return DeployError(
        f"Another deployment is under way, by {lease.holder}.",
        remedy="`tandem deploy list` shows it; try again when it ended. If its deployer died, "
        f"the next one may begin at {until:%H:%M:%S} UTC.",
    )


def _show(context: Context) -> None:
    projections.refresh(context.registry, settings=context.settings)
