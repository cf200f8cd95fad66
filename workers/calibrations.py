"""Which evaluations are still to be calibrated, and whether a checkpoint may be deployed without.

An evaluation that was answered is owed one calibration. The sweep sends a request that was lost again, and
the one before has expired by then; after a few it is `unknown`, which is a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np

from config.settings import Settings
from deploy.errors import NotDeployable
from intelligence.calibration import calibrate, unknown
from registry import asks, judgements, lineage
from registry.calibrations import Calibration, CalibrationOutcome, CalibrationRequest, sample_of
from registry.files import sha256_text
from registry.ids import id_of
from registry.records import Checkpoint, Evaluation, Suite
from registry.states import CheckpointState, EvaluationState
from registry.store import Registry, Transaction
from workers.context import Message

ACTOR = "control"
CALIBRATED_STATES = (CheckpointState.CANDIDATE, CheckpointState.ACCEPTED)


def owed(tx: Transaction, *, suite: Suite, settings: Settings) -> Iterator[Message]:
    """A question for each answered evaluation on the suite that has no calibration; noted as asked."""
    rules = settings.calibration
    alive = {checkpoint.id for checkpoint in tx.find(Checkpoint, state=CALIBRATED_STATES)}
    for evaluation in tx.find(Evaluation, suite_id=suite.id, state=EvaluationState.ANSWERED):
        if evaluation.checkpoint_id not in alive or tx.seek(Calibration, _id_for(evaluation)) is not None:
            continue
        retry = rules.retry_after_seconds
        if not asks.is_due(tx, kind="calibration", subject_id=evaluation.id, retry_after_seconds=retry):
            continue
        request = _request(tx, evaluation=evaluation, settings=settings)
        if asks.num_asked(tx, kind="calibration", subject_id=evaluation.id) >= rules.max_asks:
            reason = f"Asked {rules.max_asks} times, never answered."
            judgements.record_calibration(
                tx, calibration=unknown(request, reason=reason, now=tx.now), actor=ACTOR
            )
            continue
        asks.put(tx, kind="calibration", subject_id=evaluation.id)
        yield Message("calibration.run", request, expires_seconds=retry)


def judge_now(registry: Registry, *, checkpoint_id: str, settings: Settings, actor: str) -> None:
    """Calibrate a checkpoint here, for a person who names it before its answer from elsewhere has come.

    Nothing where it is calibrated already, and where no evaluation of it was answered. An answer that comes
    later is the same, and is not recorded twice.
    """
    with registry.reading() as tx:
        request = None
        if lineage.newest_calibration(tx, checkpoint_id=checkpoint_id) is None:
            request = _newest_request(tx, checkpoint_id=checkpoint_id, settings=settings)
    if request is None:
        return
    calibration = judge(request, now=registry.clock())
    with registry.transaction() as tx:
        judgements.record_calibration(tx, calibration=calibration, actor=actor)


def judge(request: CalibrationRequest, *, now: datetime) -> Calibration:
    """The calibration, its bootstrap seeded by what is judged: the same answers give the same intervals."""
    seed = int(sha256_text(request.evaluation_id)[:8], 16)
    return calibrate(request, now=now, rng=np.random.default_rng(seed))


def needed_for(tx: Transaction, checkpoint: Checkpoint) -> Calibration:
    """The calibration a release carries; `NotDeployable` while there is none.

    One that is unknown does not hold a checkpoint back: its verdict says whether it is good enough, and the
    server then gives no confidence, with the reason.
    """
    found = lineage.newest_calibration(tx, checkpoint_id=checkpoint.id)
    if found is None:
        raise NotDeployable(
            f"{checkpoint.id} has no calibration yet.",
            remedy=f"It follows its evaluation by itself; `tandem checkpoint show {checkpoint.id}` shows it.",
        )
    return found


def addition_to(reason: str, *, calibration: Calibration) -> str:
    """Why a checkpoint is deployed, with the warning that its confidence is not known."""
    if calibration.outcome is not CalibrationOutcome.UNKNOWN:
        return reason
    return f"{reason}; its confidence is unknown: {calibration.reason}"


def _newest_request(tx: Transaction, *, checkpoint_id: str, settings: Settings) -> CalibrationRequest | None:
    answered = tx.find(
        Evaluation,
        checkpoint_id=checkpoint_id,
        state=EvaluationState.ANSWERED,
        newest_first="requested_at",
        limit=1,
    )
    return _request(tx, evaluation=answered[0], settings=settings) if answered else None


def _request(tx: Transaction, *, evaluation: Evaluation, settings: Settings) -> CalibrationRequest:
    examples = judgements.examples_of(tx, evaluation_id=evaluation.id)
    return CalibrationRequest(
        calibration_id=_id_for(evaluation),
        checkpoint_id=evaluation.checkpoint_id,
        suite_id=evaluation.suite_id,
        evaluation_id=evaluation.id,
        settings=evaluation.settings,
        samples=tuple(sample_of(example) for example in examples),
        rules=settings.calibration,
    )


def _id_for(evaluation: Evaluation) -> str:
    return id_of("cal", evaluation.id)
