"""Decides what to serve: pure, from records to a planned deployment or a reason not to."""

from __future__ import annotations

from datetime import datetime

from deploy.errors import NotDeployable
from registry.records import Checkpoint, Deployment, Ranking
from registry.states import CheckpointState, DeploymentState


def choose(*, ranking: Ranking | None, requested_checkpoint_id: str | None) -> str:
    """The checkpoint to serve: the named one, else the best-ranked; `NotDeployable` where there is none."""
    if requested_checkpoint_id is not None:
        return requested_checkpoint_id
    if ranking is None or not ranking.entries:
        reason = "No ranking was made yet." if ranking is None else ranking.note
        raise NotDeployable(
            f"There is no best checkpoint: {reason}",
            remedy="Name one with `tandem deploy now CHECKPOINT`.",
        )
    return ranking.entries[0].checkpoint_id


def plan(
    checkpoint: Checkpoint, *, active: Deployment | None, generation: int, reason: str, now: datetime
) -> Deployment | None:
    """The deployment to carry out, or None where the checkpoint is served already.

    Only accepted checkpoints are ever served; `NotDeployable` names the state of any other, also of one
    that is served and was quarantined since. The release id bears the generation, which only grows, so
    that an older best never overwrites a newer one.
    """
    if checkpoint.state is not CheckpointState.ACCEPTED:
        raise NotDeployable(
            f"{checkpoint.id} is {checkpoint.state}: only accepted checkpoints are served.",
            remedy=f"`tandem checkpoint show {checkpoint.id}` says why.",
        )
    if active is not None and active.checkpoint_id == checkpoint.id:
        return None
    if active is not None and generation <= active.generation:
        raise NotDeployable(f"Generation {generation} is not above {active.generation}, which is served.")
    return Deployment(
        id=release_id(generation, weights_sha256=checkpoint.weights_sha256),
        generation=generation,
        checkpoint_id=checkpoint.id,
        state=DeploymentState.PLANNED,
        weights_sha256=checkpoint.weights_sha256,
        reason=reason,
        started_at=now,
    )


def check_return(deployment: Deployment, *, checkpoint: Checkpoint) -> None:
    """`NotDeployable` unless that release was served before and its checkpoint is not quarantined since.

    A retired checkpoint may return: its own files are gone, the release's are not.
    """
    check_was_served(deployment)
    if checkpoint.state is CheckpointState.QUARANTINED:
        raise NotDeployable(
            f"{deployment.id} serves {checkpoint.id}, which is quarantined.",
            remedy=f"`tandem checkpoint show {checkpoint.id}` says why.",
        )


def check_was_served(deployment: Deployment) -> None:
    """`NotDeployable` unless it was served once and is not now."""
    if deployment.state in (DeploymentState.SUPERSEDED, DeploymentState.ROLLED_BACK):
        return
    reasons = {
        DeploymentState.ACTIVE: "it is served already",
        DeploymentState.FAILED: "it was never served",
    }
    reason = reasons.get(deployment.state, "its deployment has not ended")
    raise NotDeployable(
        f"{deployment.id} is {deployment.state}: {reason}.",
        remedy="`tandem deploy list` shows the releases that were served.",
    )


def release_id(generation: int, *, weights_sha256: str) -> str:
    """`r000012-1a2b3c4d`."""
    return f"r{generation:06d}-{weights_sha256[:8]}"
