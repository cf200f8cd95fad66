"""Which checkpoint is the base, the served one, the tip, the best: one answer for every room."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, Select, literal, or_, select, union_all

from registry.calibrations import Calibration
from registry.errors import NotFound
from registry.records import Checkpoint, Deployment, Evaluation, Ranking, Suite, TrainingJob
from registry.states import CheckpointState, DeploymentState, EvaluationState, JobState
from registry.store import Transaction
from registry.tables import checkpoints, deployments, evaluations, jobs

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


def is_of_served(ranking: Ranking, *, active: Deployment | None) -> bool:
    """True where it was made while this was served: what is served keeps first place against a like one."""
    return ranking.served_checkpoint_id == (active.checkpoint_id if active else None)


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


def is_awaited(tx: Transaction, *, checkpoint_id: str, suite_id: str) -> bool:
    """A checkpoint's evaluation on a suite is asked for and not answered, as all are once a suite is new."""
    return bool(
        tx.find(
            Evaluation,
            checkpoint_id=checkpoint_id,
            suite_id=suite_id,
            state=EvaluationState.REQUESTED,
            limit=1,
        )
    )


def newest_calibration(tx: Transaction, *, checkpoint_id: str) -> Calibration | None:
    """A checkpoint's latest calibration on the active suite, else its latest on any.

    One on a suite that was active for a while, perhaps with too few rows, does not stand in its way.
    """
    found = tx.find(Calibration, checkpoint_id=checkpoint_id, newest_first="decided_at")
    suite = active_suite(tx)
    on_active = [one for one in found if suite is not None and one.suite_id == suite.id]
    return next(iter(on_active or found), None)


def parent_for(tx: Transaction, *, wish: str) -> Checkpoint:
    """The checkpoint to train on from: 'tip', 'served', 'base' or an id; `NotFound` with the remedy.

    The tip is the last checkpoint of the newest job that succeeded or was stopped, unless it was
    quarantined since; then that of the job before, or what is served where that was made later: one ruined
    job does not take back what was learnt since. Without either it is the base model.
    """
    if wish == "tip":
        return _tip_or_served(tx) or _base(tx)
    if wish == "served":
        return _served(tx) or _base(tx)
    if wish == "base":
        return _base(tx)
    return _usable(tx.get(Checkpoint, wish), states=USABLE_AS_PARENT)


def parent_of(tx: Transaction, job: TrainingJob) -> Checkpoint:
    """The checkpoint that a job trains on from; `NotFound` with the remedy.

    A job that has begun goes on from the one that it began with, also where that was quarantined meanwhile:
    from another it would be another run, and what comes of it is judged like any other.
    """
    if job.parent_checkpoint_id is None:
        return parent_for(tx, wish=job.parent)
    states = (*USABLE_AS_PARENT, CheckpointState.QUARANTINED)
    return _usable(tx.get(Checkpoint, job.parent_checkpoint_id), states=states)


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


def _usable(checkpoint: Checkpoint, *, states: Collection[CheckpointState]) -> Checkpoint:
    if checkpoint.state not in states:
        raise NotFound(
            f"{checkpoint.id} is {checkpoint.state}: training cannot start from it.",
            remedy="Choose 'tip' or 'base'.",
        )
    return checkpoint


def _tip_or_served(tx: Transaction) -> Checkpoint | None:
    """What a job that ended well made last, or what is served where that is younger: one question."""
    rows = tx.rows(_tips_and_served())
    tips, served = ([row for row in rows if bool(row["is_served"]) is wanted] for wanted in (False, True))
    found = max(tips, key=lambda row: row["since_at"], default=None)
    if served and (found is None or served[0]["created_at"] > found["created_at"]):
        found = served[0]
    if found is None:
        return None
    return Checkpoint.model_validate({column.name: found[column.name] for column in checkpoints.c})


@lru_cache(maxsize=1)
def _tips_and_served() -> CompoundSelect[Any]:
    """The newest of each state of jobs: each walks its index and stops at the first that will do."""
    found = [_newest_tip(JobState.SUCCEEDED), _newest_tip(JobState.STOPPED), _newest_served()]
    return union_all(*(select(query.subquery()) for query in found))


def _newest_tip(state: JobState) -> Select[Any]:
    usable = or_(*(checkpoints.c.state == str(usable) for usable in USABLE_AS_PARENT))
    query = select(checkpoints, jobs.c.finished_at.label("since_at"), literal(value=False).label("is_served"))
    query = query.join_from(jobs, checkpoints, jobs.c.final_checkpoint_id == checkpoints.c.id)
    query = query.where(jobs.c.state == str(state), usable)
    query = query.where(jobs.c.finished_at.is_not(None))
    return query.order_by(jobs.c.finished_at.desc(), jobs.c.id).limit(1)


def _newest_served() -> Select[Any]:
    query = select(
        checkpoints, deployments.c.started_at.label("since_at"), literal(value=True).label("is_served")
    )
    query = query.join_from(deployments, checkpoints, deployments.c.checkpoint_id == checkpoints.c.id)
    query = query.where(deployments.c.state == str(DeploymentState.ACTIVE))
    return query.order_by(deployments.c.generation.desc()).limit(1)


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
