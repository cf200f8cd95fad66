"""Carries out a deployment: transfer, verify, load beside, probe, make current. Or leaves all as it was.

`current` moves last, after the server has answered with the release. Killed at any step, the release before
is still current and complete; a second run starts over.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from deploy.door import ServingDoor
from deploy.errors import DeployError, NotDeployable
from deploy.target import ReleaseTarget
from registry.manifests import Manifest
from registry.records import Deployment
from registry.states import DeploymentState

Report = Callable[[Deployment, Deployment], Deployment]
Clock = Callable[[], datetime]


def deploy(
    deployment: Deployment,
    *,
    source: Path,
    target: ReleaseTarget,
    door: ServingDoor,
    probe_prompt: str,
    report: Report,
    clock: Clock,
) -> Deployment:
    """Bring a planned deployment to `active` or `failed`.

    `report(before, after)` saves each step and gives back what was saved; when it raises, the caller lost
    the right to deploy and nothing more is done.
    """
    at = report(deployment, deployment.changed(state=DeploymentState.SYNCING))
    served_before: str | None = None
    try:
        served_before = door.health().release_id
        path = target.push(source, release_id=deployment.id)
        manifest = target.verify(deployment.id)
        at = report(at, _verified(at, path=path, manifest=manifest))
        _switch(deployment.id, target=target, door=door, probe_prompt=probe_prompt)
    except DeployError as error:
        problem = str(error) + _restore(served_before, release_id=deployment.id, door=door)
        return report(at, _ended(at, state=DeploymentState.FAILED, problem=problem, now=clock()))
    return report(at, _active(at, now=clock()))


def reactivate(
    deployment: Deployment, *, target: ReleaseTarget, door: ServingDoor, probe_prompt: str
) -> None:
    """Serve an earlier release again; `DeployError` where that fails, the served one untouched."""
    if deployment.state not in (DeploymentState.SUPERSEDED, DeploymentState.ROLLED_BACK):
        raise NotDeployable(f"{deployment.id} is {deployment.state}: it was never served.")
    target.verify(deployment.id)
    served_before = door.health().release_id
    try:
        _switch(deployment.id, target=target, door=door, probe_prompt=probe_prompt)
    except DeployError as error:
        addition = _restore(served_before, release_id=deployment.id, door=door)
        raise type(error)(error.message + addition, remedy=error.remedy) from error


def _switch(release_id: str, *, target: ReleaseTarget, door: ServingDoor, probe_prompt: str) -> None:
    door.set_active(release_id)
    door.probe(probe_prompt, release_id=release_id)
    target.activate(release_id)


def _restore(served_before: str | None, *, release_id: str, door: ServingDoor) -> str:
    """Give the server its former release back; a sentence to add where that was needed."""
    if served_before is None or served_before == release_id:
        return ""
    try:
        if door.health().release_id == served_before:
            return ""
        door.set_active(served_before)
    except DeployError as error:
        return f" The server could not be given {served_before} back: {error}"
    return f" The server answers with {served_before} again."


def _verified(deployment: Deployment, *, path: str, manifest: Manifest) -> Deployment:
    return deployment.changed(
        state=DeploymentState.VERIFIED,
        release_path=path,
        num_files=len(manifest.files),
        num_bytes=sum(entry.num_bytes for entry in manifest.files.values()),
    )


def _active(deployment: Deployment, *, now: datetime) -> Deployment:
    duration = max(0.0, (now - deployment.started_at).total_seconds())
    return deployment.changed(state=DeploymentState.ACTIVE, activated_at=now, duration_seconds=duration)


def _ended(deployment: Deployment, *, state: DeploymentState, problem: str, now: datetime) -> Deployment:
    duration = max(0.0, (now - deployment.started_at).total_seconds())
    return deployment.changed(state=state, problem=problem, ended_at=now, duration_seconds=duration)
