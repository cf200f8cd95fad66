"""Deployments as the registry sees them: one at a time, every step saved under a lease."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from config.settings import Settings
from deploy.deployer import deploy, mend, reactivate, retreat
from deploy.door import HttpDoor, ServingDoor
from deploy.errors import DeployError, NotDeployable
from deploy.plan import check_return, choose, plan
from deploy.target import NO_FILES, ExtraFiles, LocalTarget, ReleaseTarget
from registry import handled, lineage
from registry.calibrations import confidence_files
from registry.records import Checkpoint, Deployment, Lease, Ranking, Suite
from registry.states import DeploymentState
from registry.store import Registry, Transaction
from workers import calibrations
from workers.remotes import open_remote
from workers.stack.gate import door_seconds

log = logging.getLogger(__name__)

UNFINISHED = (DeploymentState.PLANNED, DeploymentState.SYNCING, DeploymentState.VERIFIED)
RETURNING = (DeploymentState.SUPERSEDED, DeploymentState.ROLLED_BACK)
RESOURCE = "deployment"


@contextmanager
def open_releases(
    *, registry: Registry, settings: Settings, lease: Lease, actor: str, message_id: str | None = None
) -> Iterator[Releases]:
    """Releases of the host that the settings name, else of this one."""
    with open_serving_host(settings, fence=lease.token) as (target, door):
        yield Releases(
            registry=registry,
            settings=settings,
            lease=lease,
            actor=actor,
            target=target,
            door=door,
            message_id=message_id,
        )


@contextmanager
def open_serving_host(settings: Settings, *, fence: int = 0) -> Iterator[tuple[ReleaseTarget, ServingDoor]]:
    """Releases and server of the host that serves. To change them takes the token of a lease."""
    if settings.deploy.host is not None:
        with open_remote(settings, fence=fence) as remote:
            yield remote.target, remote.door
        return
    door = HttpDoor(
        settings.server_url,
        admin_key=settings.paths.secret("server_admin_key"),
        timeout_seconds=door_seconds(settings),
    )
    yield LocalTarget(settings.paths.releases), door


class Releases:
    """Serves checkpoints. `lease` is the caller's right to deploy; without it every save is refused.

    `target` and `door` are those of the host that serves: this one, or the one behind ssh. A message that was
    obeyed before, by `message_id`, changes nothing.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        settings: Settings,
        lease: Lease,
        actor: str,
        target: ReleaseTarget,
        door: ServingDoor,
        message_id: str | None = None,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._lease = lease
        self._actor = actor
        self._target = target
        self._door = door
        self._message_id = message_id

    def sync(self, *, requested_checkpoint_id: str | None) -> Deployment:
        """Serve the best-ranked checkpoint or the named one; what is served already is given back."""
        if requested_checkpoint_id is not None:
            calibrations.judge_now(
                self._registry,
                checkpoint_id=requested_checkpoint_id,
                settings=self._settings,
                actor=self._actor,
            )
        self._end_interrupted(current=self._current_if_interrupted())
        self._mend()
        planned, checkpoint, extra_files = self._plan(requested_checkpoint_id)
        if planned.state is not DeploymentState.PLANNED:
            return planned
        ended = deploy(
            planned,
            source=Path(checkpoint.path),
            target=self._target,
            door=self._door,
            probe_prompt=self._settings.deployment.probe_prompt,
            report=self._save,
            clock=self._registry.clock,
            extra_files=extra_files,
        )
        try:
            self._prune()
        except DeployError as error:  # what was deployed stays deployed; the next deployment prunes
            log.warning("Old releases were not removed: %s", error)
        return ended

    def roll_back(self, *, release_id: str | None, reason: str) -> Deployment:
        """Serve the release before, or the named one. The one served until then counts as withdrawn."""
        with self._registry.reading() as tx:
            active = lineage.active_deployment(tx)
            if active is not None and handled.was_noted(tx, message_id=self._message_id):
                return active
            wanted = _wanted(tx, release_id=release_id, active=active)
        return self._return_to(wanted, instead_of=active, reason=reason)

    def withdraw(self, failing: Deployment, *, reason: str, is_down: bool = False) -> Deployment:
        """Serve the release before that one; `NotDeployable` where another is served by now.

        `is_down`: its server does not stay up, and cannot be waited for.
        """
        with self._registry.reading() as tx:
            active = lineage.active_deployment(tx)
            if active is None or active.id != failing.id:
                raise NotDeployable(f"{failing.id} is not served any more.")
            wanted = _wanted(tx, release_id=None, active=active)
        return self._return_to(wanted, instead_of=active, reason=reason, is_down=is_down)

    def _return_to(
        self, wanted: Deployment, *, instead_of: Deployment | None, reason: str, is_down: bool = False
    ) -> Deployment:
        with self._registry.reading() as tx:
            check_return(wanted, checkpoint=tx.get(Checkpoint, wanted.checkpoint_id))
        if is_down:
            retreat(wanted, target=self._target, door=self._door)
        else:
            prompt = self._settings.deployment.probe_prompt
            reactivate(wanted, target=self._target, door=self._door, probe_prompt=prompt)
        with self._registry.transaction() as tx:
            handled.note(tx, message_id=self._message_id)
            return self._note_return(tx, wanted, instead_of=instead_of, reason=reason)

    def _current_if_interrupted(self) -> str | None:
        """Asked before the transaction: the target may be another host."""
        with self._registry.reading() as tx:
            is_interrupted = bool(tx.find(Deployment, state=UNFINISHED, limit=1))
        return self._target.current() if is_interrupted else None

    def _end_interrupted(self, *, current: str | None) -> None:
        """End what was killed in its midst, so that the next run starts over, whatever that is to do.

        `current` moves last: a release that is current was probed, and only its last step was not saved.
        """
        with self._registry.transaction() as tx:
            tx.check_lease(self._lease)
            for deployment in tx.find(Deployment, state=UNFINISHED):
                if deployment.state is DeploymentState.VERIFIED and deployment.id == current:
                    _supersede(tx, lease=self._lease, actor=self._actor)
                    reason = "it was current already when its deployer died"
                    changes: dict[str, Any] = {"activated_at": tx.now}
                    to = DeploymentState.ACTIVE
                else:
                    reason = f"interrupted while {deployment.state}"
                    changes = {"problem": reason, "ended_at": tx.now}
                    to = DeploymentState.FAILED
                tx.transition(deployment, to=to, actor=self._actor, reason=reason, **changes)

    def _mend(self) -> None:
        """Whatever became of deployments before, what answers is `current`. A server that is down is not."""
        try:
            mended = mend(target=self._target, door=self._door)
            self._finish_return(self._target.current())
        except DeployError as error:
            log.warning("The server may not serve what is current: %s", error)
        else:
            if mended is not None:
                log.warning("The server did not serve %s, which is current; it does again.", mended)

    def _finish_return(self, current: str | None) -> None:
        """Only a rollback points `current` at what was served before: one that died before it was saved."""
        with self._registry.transaction() as tx:
            active = lineage.active_deployment(tx)
            former = None if current is None else tx.seek(Deployment, current)
            if active is None or former is None or former.state not in RETURNING:
                return
            reason = "a rollback died when this was current already"
            self._note_return(tx, former, instead_of=active, reason=reason)

    def _plan(self, requested_checkpoint_id: str | None) -> tuple[Deployment, Checkpoint, ExtraFiles]:
        with self._registry.transaction() as tx:
            tx.check_lease(self._lease)
            active = lineage.active_deployment(tx)
            if active is not None and handled.was_noted(tx, message_id=self._message_id):
                return active, tx.get(Checkpoint, active.checkpoint_id), NO_FILES
            suite = lineage.active_suite(tx)
            ranking = None if suite is None else lineage.newest_ranking(tx, suite_id=suite.id)
            wish = choose(ranking=ranking, requested_checkpoint_id=requested_checkpoint_id)
            if requested_checkpoint_id is None and lineage.is_withdrawn(tx, checkpoint_id=wish):
                raise NotDeployable(
                    f"The best-ranked checkpoint {wish} was rolled back.",
                    remedy=f"`tandem deploy now {wish}` brings it forward again.",
                )
            checkpoint = tx.get(Checkpoint, wish)
            if requested_checkpoint_id is None:
                _refuse_outdated(ranking, wish=wish, active=active)
                _refuse_unmeasured(tx, wish=wish, active=active, suite=suite)
            reason = "best-ranked" if requested_checkpoint_id is None else "asked for by name"
            planned = plan(
                checkpoint, active=active, generation=_next_generation(tx), reason=reason, now=tx.now
            )
            if planned is None:
                if active is None:
                    raise NotDeployable(f"{checkpoint.id} cannot be planned.")
                handled.note(tx, message_id=self._message_id)
                return active, checkpoint, NO_FILES
            calibration = calibrations.needed_for(tx, checkpoint)
            planned = planned.changed(reason=calibrations.addition_to(reason, calibration=calibration))
            tx.add(planned, actor=self._actor, reason=f"{checkpoint.id}, {planned.reason}")
            return planned, checkpoint, confidence_files(calibration)

    def _save(self, before: Deployment, after: Deployment) -> Deployment:
        changes = after.model_dump(exclude={"id", "state", "generation", "checkpoint_id", "reason"})
        with self._registry.transaction() as tx:
            if after.state is DeploymentState.ACTIVE:
                handled.note(tx, message_id=self._message_id)
                _supersede(tx, lease=self._lease, actor=self._actor)
            return tx.transition(
                before,
                to=after.state,
                lease=self._lease,
                actor=self._actor,
                reason=after.problem or after.reason,
                **changes,
            )

    def _note_return(
        self, tx: Transaction, wanted: Deployment, *, instead_of: Deployment | None, reason: str
    ) -> Deployment:
        if instead_of is not None:
            self._withdraw(tx, instead_of, reason=reason)
        return tx.transition(
            wanted,
            to=DeploymentState.ACTIVE,
            lease=self._lease,
            actor=self._actor,
            reason=f"rolled back to: {reason}",
            activated_at=tx.now,
            ended_at=None,
        )

    def _withdraw(self, tx: Transaction, active: Deployment, *, reason: str) -> None:
        tx.transition(
            active,
            to=DeploymentState.ROLLED_BACK,
            lease=self._lease,
            actor=self._actor,
            reason=reason,
            problem=reason,
            ended_at=tx.now,
        )

    def _prune(self) -> None:
        with self._registry.reading() as tx:
            served = tx.find(
                Deployment,
                state=[DeploymentState.ACTIVE, DeploymentState.SUPERSEDED],
                newest_first="generation",
                limit=2,
            )
        keep = self._settings.deployment.keep_releases
        self._target.prune(keep=keep, protect=[deployment.id for deployment in served])


def _wanted(tx: Transaction, *, release_id: str | None, active: Deployment | None) -> Deployment:
    if release_id is not None:
        return tx.get(Deployment, release_id)
    before = tx.find(Deployment, state=DeploymentState.SUPERSEDED, newest_first="generation")
    older = [item for item in before if active is None or item.generation < active.generation]
    if not older:
        raise DeployError("There is no release before the one that is served.")
    return older[0]


def _refuse_outdated(ranking: Ranking | None, *, wish: str, active: Deployment | None) -> None:
    """First place depends on what is served: it stays unless another is better beyond chance."""
    if active is not None and active.checkpoint_id == wish:
        return
    if ranking is not None and not lineage.is_of_served(ranking, active=active):
        then, now = ranking.served_checkpoint_id, active and active.checkpoint_id
        raise NotDeployable(
            f"{ranking.id} was made when {then or 'nothing'} was served, not {now or 'nothing'}.",
            remedy="Wait for the next ranking, or name a checkpoint: `tandem deploy now CHECKPOINT`.",
        )


def _refuse_unmeasured(tx: Transaction, *, wish: str, active: Deployment | None, suite: Suite | None) -> None:
    """A ranking on a new suite that lacks what is served does not say that another is better."""
    if active is None or suite is None or active.checkpoint_id == wish:
        return
    if lineage.is_awaited(tx, checkpoint_id=active.checkpoint_id, suite_id=suite.id):
        raise NotDeployable(
            f"What is served, {active.checkpoint_id}, is not evaluated on {suite.id} yet.",
            remedy=f"Wait for it, or name a checkpoint: `tandem deploy now {wish}`.",
        )


def _next_generation(tx: Transaction) -> int:
    newest = tx.find(Deployment, newest_first="generation", limit=1)
    return newest[0].generation + 1 if newest else 1


def _supersede(tx: Transaction, *, lease: Lease, actor: str) -> None:
    active = lineage.active_deployment(tx)
    if active is not None:
        reason = "a newer release is served"
        tx.transition(
            active, to=DeploymentState.SUPERSEDED, lease=lease, actor=actor, reason=reason, ended_at=tx.now
        )
