"""What the registry says is owed: evaluations, verdicts, calibrations, a ranking, a deployment, bells.

Every step of the pipeline is found here by looking at the rows, never by remembering a message. A task
that recorded something asks `owed` for what follows; the sweep asks the same every 30 seconds. So a lost
message is sent again the way it was sent first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from config.settings import Settings
from intelligence.regression import choose_baseline
from registry import accuracy, asks, judgements, leases, lineage, order, queue
from registry.ids import id_of
from registry.messages import (
    AccuracyRequest,
    ArtifactReference,
    DeploymentRequest,
    EvaluationRequest,
    Evidence,
    JobBell,
    RankingRequest,
    RegressionRequest,
)
from registry.order import QueueRules
from registry.records import (
    Checkpoint,
    Deployment,
    Evaluation,
    GenerationSettings,
    Suite,
    Verdict,
)
from registry.states import CheckpointState, EvaluationState, Outcome, Priority
from registry.store import Transaction
from workers import calibrations, standings, traffic
from workers.candidates import by_content
from workers.context import Context, Message
from workers.releases import RESOURCE, UNFINISHED

ACTOR = "control"
JUDGED_STATES = (CheckpointState.COMPLETE, CheckpointState.CANDIDATE, CheckpointState.ACCEPTED)
RANKING_RETRY_SECONDS = 60.0
DEPLOYMENT_RETRY_SECONDS = 600.0


def announce(context: Context) -> None:
    """Send what is owed, once it is saved that it was."""
    with context.registry.transaction() as tx:
        messages = owed(tx, settings=context.settings)
    context.ring(messages)


def owed(tx: Transaction, *, settings: Settings) -> list[Message]:
    """The messages that move every checkpoint one step on; notes in the registry that they were sent."""
    suite = lineage.active_suite(tx)
    if suite is None:
        return [*_interrupted(tx), *traffic.owed(tx, settings=settings)]
    return [
        *_evaluations(tx, suite=suite, settings=settings),
        *_verdicts(tx, suite=suite, settings=settings),
        *_tests(tx, suite=suite, settings=settings),
        *calibrations.owed(tx, suite=suite, settings=settings),
        *_ranking(tx, settings=settings),
        *(list(_deployment(tx, suite=suite)) or _interrupted(tx)),
        *traffic.owed(tx, settings=settings),
    ]


def bells(
    tx: Transaction, *, num_messages: Mapping[str, int], rules: QueueRules | None = None
) -> list[Message]:
    """One bell for each job that may run now and whose queue holds fewer messages than such jobs."""
    rules, num_running = rules or QueueRules(), order.num_running_by_queue(tx)
    missing: list[Message] = []
    for priority in Priority:
        jobs = [
            job
            for job in queue.waiting(tx, queues=(priority,))
            if not order.obstacle(tx, job, rules=rules, num_running=num_running)
        ]
        missing += [bell(job.id, priority=priority) for job in jobs[num_messages.get(priority, 0) :]]
    return missing


def wanted(tx: Transaction, *, evaluation_id: str, settings: Settings) -> EvaluationRequest | None:
    """An evaluation's request with this host's paths; None where it is not, or no longer, waited for."""
    evaluation = tx.seek(Evaluation, evaluation_id)
    if evaluation is None or evaluation.state is not EvaluationState.REQUESTED:
        return None
    checkpoint, suite = tx.get(Checkpoint, evaluation.checkpoint_id), tx.get(Suite, evaluation.suite_id)
    return _evaluation_request(evaluation, checkpoint, suite, settings)


def bell(job_id: str, *, priority: Priority) -> Message:
    """The message that says: a job waits."""
    return Message("training.run", JobBell(job_id=job_id), queue=str(priority))


def generation_settings(settings: Settings) -> GenerationSettings:
    """How answers are generated for evaluation: greedy, so that the same weights answer the same."""
    return GenerationSettings(max_new_tokens=settings.evaluation.max_new_tokens)


def _evaluations(tx: Transaction, *, suite: Suite, settings: Settings) -> Iterator[Message]:
    retry, room = settings.evaluation.retry_after_seconds, _room_for_evaluations(tx, settings=settings)
    for checkpoint in _by_urgency(tx, suite=suite):
        evaluation = _evaluation_row(tx, checkpoint=checkpoint, suite=suite, settings=settings)
        if evaluation.state is not EvaluationState.REQUESTED:
            continue
        if not asks.is_due(tx, kind="evaluation", subject_id=evaluation.id, retry_after_seconds=retry):
            continue
        if asks.num_asked(tx, kind="evaluation", subject_id=evaluation.id) >= settings.evaluation.max_asks:
            problem = f"asked {settings.evaluation.max_asks} times, never answered"
            judgements.fail_evaluation(tx, evaluation, problem=problem, host="", actor=ACTOR)
            continue
        if room > 0:
            room -= 1
            asks.put(tx, kind="evaluation", subject_id=evaluation.id)
            yield _evaluation_message(_evaluation_request(evaluation, checkpoint, suite, settings), settings)


def _by_urgency(tx: Transaction, *, suite: Suite) -> list[Checkpoint]:
    """What others are compared with, then what has no verdict yet, then what has one: oldest first."""
    claims = {checkpoint_id: place for place, checkpoint_id in enumerate(_claims(tx, suite=suite))}

    def rank(one: Checkpoint) -> tuple[int, bool]:
        return claims.get(one.id, len(claims)), one.state is CheckpointState.ACCEPTED

    return sorted(tx.find(Checkpoint, state=JUDGED_STATES, order_by="created_at"), key=rank)


def _room_for_evaluations(tx: Transaction, *, settings: Settings) -> int:
    """How many more the hosts can take. The rest wait in the registry, where they cannot grow old."""
    lately = settings.evaluation.retry_after_seconds - settings.guard.defer_seconds
    num_hosts = max(1, len(settings.deploy.all_hosts))
    under_way = asks.num_under_way(tx, kind="evaluation", within_seconds=lately)
    return settings.evaluation.asked_at_once * num_hosts - under_way


def _evaluation_message(request: EvaluationRequest, settings: Settings) -> Message:
    """Where one other host evaluates, what it needs is sent ahead; of several, the one that takes it asks."""
    hosts = settings.deploy.all_hosts
    if len(hosts) == 1:
        return Message("evaluation.send", request)
    return Message("evaluation.run", by_content(request) if hosts else request)


def _evaluation_row(
    tx: Transaction, *, checkpoint: Checkpoint, suite: Suite, settings: Settings
) -> Evaluation:
    how = generation_settings(settings)
    evaluation_id = id_of("eval", checkpoint.id, suite.id, how.model_dump_json())
    evaluation = tx.seek(Evaluation, evaluation_id)
    if evaluation is not None:
        return evaluation
    evaluation = Evaluation(
        id=evaluation_id,
        checkpoint_id=checkpoint.id,
        suite_id=suite.id,
        state=EvaluationState.REQUESTED,
        settings=how,
        requested_at=tx.now,
    )
    tx.add(evaluation, actor=ACTOR, reason=f"{checkpoint.id} on {suite.name}")
    if checkpoint.state is CheckpointState.COMPLETE:
        tx.transition(checkpoint, to=CheckpointState.CANDIDATE, actor=ACTOR, reason="evaluation asked for")
    return evaluation


def _evaluation_request(
    evaluation: Evaluation, checkpoint: Checkpoint, suite: Suite, settings: Settings
) -> EvaluationRequest:
    return EvaluationRequest(
        evaluation_id=evaluation.id,
        checkpoint_id=checkpoint.id,
        model=ArtifactReference(path=checkpoint.path, sha256=checkpoint.weights_sha256),
        suite_id=suite.id,
        suite=ArtifactReference(path=suite.path, sha256=suite.content_sha256),
        settings=evaluation.settings,
        device=settings.evaluation.device,
        num_threads=settings.evaluation.num_threads,
    )


def _verdicts(tx: Transaction, *, suite: Suite, settings: Settings) -> Iterator[Message]:
    for checkpoint in tx.find(Checkpoint, state=CheckpointState.CANDIDATE):
        verdict_id = id_of("verdict", checkpoint.id, suite.id)
        if tx.seek(Verdict, verdict_id) is not None:
            continue
        failed = _failed_evaluation(tx, checkpoint=checkpoint, suite=suite)
        if failed is not None:
            reason = f"Its evaluation has no result: {failed.problem}"
            _say_unknown(tx, evaluation=failed, why="unanswered", reason=reason)
            continue
        evaluation = lineage.answered_evaluation(tx, checkpoint_id=checkpoint.id, suite_id=suite.id)
        if evaluation is None:
            continue
        if checkpoint.origin == "base":
            _accept_first_anchor(tx, checkpoint=checkpoint, evaluation=evaluation)
            continue
        yield from _check(tx, checkpoint=checkpoint, evaluation=evaluation, suite=suite, settings=settings)


def _check(
    tx: Transaction, *, checkpoint: Checkpoint, evaluation: Evaluation, suite: Suite, settings: Settings
) -> Iterator[Message]:
    anchor = _anchor(tx, suite=suite)
    if anchor is None:
        if reason := _why_no_anchor(tx, suite=suite):
            _say_unknown(tx, evaluation=evaluation, why="no anchor", reason=reason)
        return
    retry = settings.evaluation.retry_after_seconds
    if not asks.is_due(tx, kind="verdict", subject_id=evaluation.id, retry_after_seconds=retry):
        return
    asks.put(tx, kind="verdict", subject_id=evaluation.id)
    request = RegressionRequest(
        verdict_id=id_of("verdict", checkpoint.id, suite.id),
        candidate=_evidence(tx, evaluation=evaluation),
        baseline=_evidence(tx, evaluation=anchor),
        first_anchor=_first_anchor(tx, suite=suite, anchor=anchor),
        limits=settings.regression,
    )
    yield Message("regression.check", request)


def _first_anchor(tx: Transaction, *, suite: Suite, anchor: Evaluation) -> Evidence | None:
    """What drift is measured from; None where it is the anchor of today."""
    first = judgements.first_anchor(tx, suite_id=suite.id)
    return None if first is None or first.id == anchor.id else _evidence(tx, evaluation=first)


def _tests(tx: Transaction, *, suite: Suite, settings: Settings) -> Iterator[Message]:
    retry = settings.evaluation.retry_after_seconds
    for evaluation in accuracy.untested(tx, suite_id=suite.id):
        if not asks.is_due(tx, kind="accuracy", subject_id=evaluation.id, retry_after_seconds=retry):
            continue
        anchor = _anchor(tx, suite=suite)
        if anchor is None:  # its evaluation is on its way
            return
        asks.put(tx, kind="accuracy", subject_id=evaluation.id)
        request = AccuracyRequest(
            report_id=accuracy.report_id(evaluation.id),
            candidate=_evidence(tx, evaluation=evaluation),
            baseline=None if anchor.id == evaluation.id else _evidence(tx, evaluation=anchor),
            limits=settings.testing,
            may_alarm=not _is_older(tx, evaluation.checkpoint_id, than=anchor.checkpoint_id),
        )
        yield Message("testing.run", request)


def _is_older(tx: Transaction, checkpoint_id: str, *, than: str) -> bool:
    """A new suite is put to old checkpoints too, and those are behind by nature."""
    return tx.get(Checkpoint, checkpoint_id).created_at < tx.get(Checkpoint, than).created_at


def _anchor(tx: Transaction, *, suite: Suite) -> Evaluation | None:
    """The anchored baseline's evaluation on this suite: served, else best ranked, else base.

    None while that of a better claim is on its way, as all are after a change of the suite: compared with a
    lesser one meanwhile, what is far worse than the served checkpoint would pass.
    """
    for checkpoint_id in _claims(tx, suite=suite):
        found = lineage.answered_evaluation(tx, checkpoint_id=checkpoint_id, suite_id=suite.id)
        if found is not None:
            return found
        if lineage.is_awaited(tx, checkpoint_id=checkpoint_id, suite_id=suite.id):
            return None
    return None


def _claims(tx: Transaction, *, suite: Suite) -> list[str]:
    served, base = lineage.active_deployment(tx), lineage.base_checkpoint(tx)
    return choose_baseline(
        served_checkpoint_id=served.checkpoint_id if served else None,
        ranking=lineage.newest_ranking(tx, suite_id=suite.id),
        base_checkpoint_id=base.id if base else None,
    )


def _why_no_anchor(tx: Transaction, *, suite: Suite) -> str:
    """Why nothing can be compared with; empty while an evaluation to compare with is on its way."""
    if any(lineage.is_awaited(tx, checkpoint_id=one, suite_id=suite.id) for one in _claims(tx, suite=suite)):
        return ""
    base = lineage.base_checkpoint(tx)
    if base is None:
        return "There is no base model to compare it with: `tandem checkpoint import --as-base` brings one."
    failed = _failed_evaluation(tx, checkpoint=base, suite=suite)
    return "" if failed is None else f"The base model's evaluation has no result: {failed.problem}"


def _evidence(tx: Transaction, *, evaluation: Evaluation) -> Evidence:
    return Evidence(
        checkpoint_id=evaluation.checkpoint_id,
        evaluation_id=evaluation.id,
        suite_id=evaluation.suite_id,
        examples=judgements.examples_of(tx, evaluation_id=evaluation.id),
    )


def _failed_evaluation(tx: Transaction, *, checkpoint: Checkpoint, suite: Suite) -> Evaluation | None:
    failed = tx.find(
        Evaluation, checkpoint_id=checkpoint.id, suite_id=suite.id, state=EvaluationState.FAILED, limit=1
    )
    return failed[0] if failed else None


def _say_unknown(tx: Transaction, *, evaluation: Evaluation, why: str, reason: str) -> None:
    verdict = Verdict(
        # Its own name: an answer that comes late may still be judged.
        id=id_of("verdict", evaluation.id, why),
        checkpoint_id=evaluation.checkpoint_id,
        suite_id=evaluation.suite_id,
        evaluation_id=evaluation.id,
        baseline_checkpoint_id=None,
        baseline_evaluation_id=None,
        outcome=Outcome.UNKNOWN,
        reasons=(reason,),
        num_pairs=0,
        decided_at=tx.now,
    )
    judgements.record_verdict(tx, verdict=verdict, actor=ACTOR)


def _accept_first_anchor(tx: Transaction, *, checkpoint: Checkpoint, evaluation: Evaluation) -> None:
    has_loss = evaluation.summary is not None and evaluation.summary.loss is not None
    if has_loss:
        reason = "base model: the first anchor"
        tx.transition(checkpoint, to=CheckpointState.ACCEPTED, actor=ACTOR, reason=reason)
        return
    reason = "base model without a finite loss: it cannot be an anchor"
    tx.transition(checkpoint, to=CheckpointState.QUARANTINED, actor=ACTOR, reason=reason)


def _ranking(tx: Transaction, *, settings: Settings) -> Iterator[Message]:
    standing = standings.load(tx)
    if standing is None or not standing.pairs or standing.is_ranked(settings.ranking):
        return
    subject = id_of("ranking", standing.fingerprint(settings.ranking))
    if asks.is_due(tx, kind="ranking", subject_id=subject, retry_after_seconds=RANKING_RETRY_SECONDS):
        asks.put(tx, kind="ranking", subject_id=subject)
        yield Message("ranking.update", RankingRequest())


def _deployment(tx: Transaction, *, suite: Suite) -> Iterator[Message]:
    ranking = lineage.newest_ranking(tx, suite_id=suite.id)
    if ranking is None or not ranking.entries:
        return
    best, active = ranking.entries[0].checkpoint_id, lineage.active_deployment(tx)
    if active is not None and active.checkpoint_id == best:
        return
    if not lineage.is_of_served(ranking, active=active):
        return  # another was deployed since, by name or by going back: it is ranked anew first
    if active is not None and lineage.is_awaited(tx, checkpoint_id=active.checkpoint_id, suite_id=suite.id):
        return  # the suite is new: what is served is not in this ranking yet, and may be the best of it
    if lineage.is_withdrawn(tx, checkpoint_id=best):
        return
    if (
        lineage.newest_calibration(tx, checkpoint_id=best) is None
    ):  # it is on its way, and asks for this again
        return
    yield from _sync(tx, subject=f"{ranking.id}:{best}")


def _interrupted(tx: Transaction) -> Iterator[Message]:
    """A deployment that nobody carries out any more: the next one ends it, and sees to what is served."""
    found = tx.find(Deployment, state=UNFINISHED, limit=1)
    if not found or leases.is_held(tx, resource=RESOURCE):
        return
    yield from _sync(tx, subject=f"interrupted:{found[0].id}")


def _sync(tx: Transaction, *, subject: str) -> Iterator[Message]:
    if asks.is_due(tx, kind="deployment", subject_id=subject, retry_after_seconds=DEPLOYMENT_RETRY_SECONDS):
        asks.put(tx, kind="deployment", subject_id=subject)
        yield Message("deployment.sync_best", DeploymentRequest())
