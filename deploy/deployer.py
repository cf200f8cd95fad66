"""Carries out a deployment: transfer, verify, load beside, probe, make current. Or leaves all as it was.

`current` moves last, after the server has answered with the release. Killed at any step, `current` names a
complete release, the old or the new one, and a second run starts over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from deploy.door import ServingDoor
from deploy.errors import DeployError, ServerFailed, TransferFailed
from deploy.plan import check_was_served
from deploy.target import NO_FILES, ExtraFiles, ReleaseTarget
from registry.manifests import Manifest
from registry.records import Deployment
from registry.serving import ServerHealth
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
    extra_files: ExtraFiles = NO_FILES,
) -> Deployment:
    """Bring a planned deployment to `active` or `failed`.

    A server that cannot be reached fails it before a byte is copied: a release that nobody loaded and
    probed is never made current. `report(before, after)` saves each step and gives back what was saved;
    when it raises, the caller lost the right to deploy and nothing more is done.
    """
    at = report(deployment, deployment.changed(state=DeploymentState.SYNCING))
    before: str | None = None
    try:
        before = _standing(target=target, door=door)
        path = target.push(source, release_id=deployment.id, extra_files=extra_files)
        manifest = _verify(deployment, target=target)
        at = report(at, _verified(at, path=path, manifest=manifest))
        _switch(deployment, target=target, door=door, probe_prompt=probe_prompt)
    except DeployError as error:
        problem = str(error) + _restore(before, release_id=deployment.id, target=target, door=door)
        return report(at, _failed(at, problem=problem, now=clock()))
    return report(at, _active(at, now=clock()))


def reactivate(
    deployment: Deployment, *, target: ReleaseTarget, door: ServingDoor, probe_prompt: str
) -> None:
    """Serve an earlier release again; `DeployError` where that fails, the served one untouched.

    Whether its checkpoint may return is `deploy.plan.check_return`'s to say.
    """
    check_was_served(deployment)
    before = _standing(target=target, door=door)
    _verify(deployment, target=target)
    try:
        _switch(deployment, target=target, door=door, probe_prompt=probe_prompt, is_return=True)
    except DeployError as error:
        addition = _restore(before, release_id=deployment.id, target=target, door=door)
        raise type(error)(error.message + addition, remedy=error.remedy) from error


def retreat(deployment: Deployment, *, target: ReleaseTarget, door: ServingDoor) -> None:
    """Make an earlier release current before the server loads it: for a server that does not stay up.

    It comes up with what is current. One that is up just then is told at once, and if it dies of what it
    serves before it could obey, its next start obeys.
    """
    check_was_served(deployment)
    _verify(deployment, target=target)
    target.activate(deployment.id, is_return=True)
    with suppress(ServerFailed):
        door.set_active(deployment.id)


def mend(*, target: ReleaseTarget, door: ServingDoor) -> str | None:
    """Have the server serve `current` where it serves something else; the release it was told to, else None.

    A deployer that died between the swap and the flip, or lost the link before it could take the swap back,
    leaves a server on a release that is not `current`, or on none. What is being loaded is replaced too: it
    would be swapped in later. The caller holds the right to deploy.
    """
    current = target.current()
    if current is None or _comes_up_with(current, health=door.health()):
        return None
    door.set_active(current)
    return current


def _comes_up_with(current: str, *, health: ServerHealth) -> bool:
    """It serves that release, or is about to: one that has just started loads what is current by itself."""
    if health.loading_release_id is not None:
        return health.loading_release_id == current
    return health.release_id == current or health.status == "loading"


def _standing(*, target: ReleaseTarget, door: ServingDoor) -> str | None:
    """What to return to. `current` before the server's word: that may be what a killed deployment left."""
    served = door.health().release_id
    return target.current() or served


def _verify(deployment: Deployment, *, target: ReleaseTarget) -> Manifest:
    manifest = target.verify(deployment.id)
    if manifest.weights_sha256 != deployment.weights_sha256:
        raise TransferFailed(
            f"Release {deployment.id} holds weights {manifest.weights_sha256[:12]}, "
            f"not the judged ones ({deployment.weights_sha256[:12]}).",
            remedy="The checkpoint's directory was changed after it was registered.",
        )
    return manifest


def _switch(
    deployment: Deployment,
    *,
    target: ReleaseTarget,
    door: ServingDoor,
    probe_prompt: str,
    is_return: bool = False,
) -> None:
    answer = door.set_active(deployment.id)
    if answer.weights_sha256 != deployment.weights_sha256:
        raise ServerFailed(
            f"The server loaded weights {answer.weights_sha256[:12]} for {deployment.id}, "
            f"not {deployment.weights_sha256[:12]}.",
            remedy="It reads another releases directory than the one deployed to.",
        )
    door.probe(probe_prompt, release_id=deployment.id)
    target.activate(deployment.id, is_return=is_return)


def _restore(before: str | None, *, release_id: str, target: ReleaseTarget, door: ServingDoor) -> str:
    """Give `current` and the server the former release back; a sentence to add where that was needed."""
    if before == release_id:
        return ""
    try:
        if before is not None and target.current() == release_id:
            target.activate(before, is_return=True)
        if not _needs_restoring(door.health(), before=before, release_id=release_id):
            return ""
        if before is None:
            return f" The server keeps {release_id}: it served nothing before."
        door.set_active(before)
    except DeployError as error:
        return f" {before or 'The former state'} could not be restored: {error}"
    return f" The server answers with {before} again."


def _needs_restoring(health: ServerHealth, *, before: str | None, release_id: str) -> bool:
    """It serves the release that failed, or neither: the former one made way for it and did not come back.

    A server that was too slow to answer still loads the release, and would swap it in later.
    """
    if release_id in (health.release_id, health.loading_release_id):
        return True
    return before is not None and health.release_id is None and health.loading_release_id is None


def _verified(deployment: Deployment, *, path: str, manifest: Manifest) -> Deployment:
    return deployment.changed(
        state=DeploymentState.VERIFIED,
        release_path=path,
        num_files=len(manifest.files),
        num_bytes=sum(entry.num_bytes for entry in manifest.files.values()),
    )


def _active(deployment: Deployment, *, now: datetime) -> Deployment:
    return deployment.changed(
        state=DeploymentState.ACTIVE,
        activated_at=now,
        duration_seconds=_duration_seconds(deployment, now=now),
    )


def _failed(deployment: Deployment, *, problem: str, now: datetime) -> Deployment:
    return deployment.changed(
        state=DeploymentState.FAILED,
        problem=problem,
        ended_at=now,
        duration_seconds=_duration_seconds(deployment, now=now),
    )


def _duration_seconds(deployment: Deployment, *, now: datetime) -> float:
    """Never below zero: the clock of a host may be set back."""
    return max(0.0, (now - deployment.started_at).total_seconds())
