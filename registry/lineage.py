"""Which checkpoint is the base, the served one, the tip, the best: one answer for every room."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from sqlalchemy import Select, bindparam, select

from registry.calibrations import Calibration
from registry.errors import NotFound
from registry.records import Checkpoint, Deployment, Evaluation, Ranking, Suite
from registry.states import CheckpointState, DeploymentState, EvaluationState, JobState
from registry.store import Transaction
from registry.tables import checkpoints, evaluations, jobs

USABLE_AS_PARENT = (CheckpointState.COMPLETE, CheckpointState.CANDIDATE, CheckpointState.ACCEPTED)


def base_checkpoint(tx: Transaction) -> Checkpoint | None:
    """The newest base model: what training starts from, and the first anchor."""
    found = tx.find(Checkpoint, origin="base", newest_first="created_at", limit=1)
    return found[0] if found else None


def active_deployment(tx: Transaction) -> Deployment | None:
    """What is served, by the registry."""
    found = tx.find(Deployment, state=DeploymentState.ACTIVE, newest_first="generation", limit=1)
    return found[0] if found else None


def is_withdrawn(tx: Transaction, *, checkpoint_id: str) -> bool:
    """A person or a probe took its last release back: only a person brings it forward again."""
    newest = tx.find(Deployment, checkpoint_id=checkpoint_id, newest_first="generation", limit=1)
    return bool(newest) and newest[0].state is DeploymentState.ROLLED_BACK


def active_suite(tx: Transaction) -> Suite | None:
    """The suite that checkpoints are judged on."""
    found = tx.find(Suite, is_active=True, newest_first="created_at", limit=1)
    return found[0] if found else None


def newest_evaluation(tx: Transaction, *, job_id: str | None = None) -> Evaluation | None:
    """The evaluation answered last: of a job's checkpoints where there is one, else of all."""
    query = select(evaluations.c.id).where(evaluations.c.state == str(EvaluationState.ANSWERED))
    query = query.order_by(evaluations.c.answered_at.desc(), evaluations.c.id).limit(1)
    found = None
    if job_id is not None:
        of_job = select(checkpoints.c.id).where(checkpoints.c.job_id == job_id)
        found = tx.connection.execute(query.where(evaluations.c.checkpoint_id.in_(of_job))).scalar()
    found = found or tx.connection.execute(query).scalar()
    return None if found is None else tx.get(Evaluation, found)


def newest_ranking(tx: Transaction, *, suite_id: str) -> Ranking | None:
    """The latest ranking on this suite."""
    found = tx.find(Ranking, suite_id=suite_id, newest_first="made_at", limit=1)
    return found[0] if found else None


def answered_evaluation(tx: Transaction, *, checkpoint_id: str, suite_id: str) -> Evaluation | None:
    """A checkpoint's answered evaluation on a suite, the newest if there are several."""
    found = tx.find(
        Evaluation,
        checkpoint_id=checkpoint_id,
        suite_id=suite_id,
        state=EvaluationState.ANSWERED,
        newest_first="requested_at",
        limit=1,
    )
    return found[0] if found else None


def newest_calibration(tx: Transaction, *, checkpoint_id: str) -> Calibration | None:
    """A checkpoint's latest calibration, on whichever suite."""
    found = tx.find(Calibration, checkpoint_id=checkpoint_id, newest_first="decided_at", limit=1)
    return found[0] if found else None


def parent_for(tx: Transaction, *, wish: str) -> Checkpoint:
    """The checkpoint to train on from: 'tip', 'served', 'base' or an id; `NotFound` with the remedy.

    The tip is the last checkpoint of the newest job that succeeded or was stopped, unless it was
    quarantined since; without one it is what is served, and before the first deployment the base model.
    """
    if wish == "tip":
        return _tip(tx) or _served(tx) or _base(tx)
    if wish == "served":
        return _served(tx) or _base(tx)
    if wish == "base":
        return _base(tx)
    checkpoint = tx.get(Checkpoint, wish)
    if checkpoint.state not in USABLE_AS_PARENT:
        raise NotFound(
            f"{wish} is {checkpoint.state}: training cannot start from it.", remedy="Choose 'tip' or 'base'."
        )
    return checkpoint


def ancestors(tx: Transaction, *, checkpoint_id: str) -> list[Checkpoint]:
    """The checkpoint itself, its parent, and so on back to the base model."""
    found: list[Checkpoint] = []
    seen: set[str] = set()
    next_id: str | None = checkpoint_id
    while next_id is not None and next_id not in seen:
        seen.add(next_id)
        checkpoint = tx.get(Checkpoint, next_id) if not found else tx.seek(Checkpoint, next_id)
        if checkpoint is None:
            break
        found.append(checkpoint)
        next_id = checkpoint.parent_checkpoint_id
    return found


def _tip(tx: Transaction) -> Checkpoint | None:
    """One query a state: each walks its index from the newest and stops at the first that will do."""
    ends = (JobState.SUCCEEDED, JobState.STOPPED)
    found = [tx.connection.execute(_newest_usable(), {"job_state": str(state)}).first() for state in ends]
    newest = max((row for row in found if row is not None), key=lambda row: row.finished_at, default=None)
    return None if newest is None else tx.get(Checkpoint, newest.id)


@lru_cache(maxsize=1)
def _newest_usable() -> Select[tuple[str, datetime]]:
    usable = [str(state) for state in USABLE_AS_PARENT]
    query = select(checkpoints.c.id, jobs.c.finished_at)
    query = query.join_from(jobs, checkpoints, jobs.c.final_checkpoint_id == checkpoints.c.id)
    query = query.where(jobs.c.state == bindparam("job_state"), checkpoints.c.state.in_(usable))
    return (
        query.where(jobs.c.finished_at.is_not(None)).order_by(jobs.c.finished_at.desc(), jobs.c.id).limit(1)
    )


def _served(tx: Transaction) -> Checkpoint | None:
    active = active_deployment(tx)
    return None if active is None else tx.seek(Checkpoint, active.checkpoint_id)


def _base(tx: Transaction) -> Checkpoint:
    found = base_checkpoint(tx)
    if found is None:
        raise NotFound(
            "There is no base model.", remedy="Register one with `tandem checkpoint import PATH --as-base`."
        )
    return found
