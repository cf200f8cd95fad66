"""What each part is doing, how old each fact is, and `unknown` where nothing says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
from redis import Redis
from redis.exceptions import RedisError

from config.settings import Settings
from registry import asks, lineage, queue
from registry.errors import RegistryUnavailable
from registry.records import Checkpoint, Evaluation, TrainingJob, Verdict
from registry.states import EvaluationState, JobState, Priority, is_final
from registry.status_files import (
    CheckpointStatus,
    JobStatus,
    PartState,
    PartStatus,
    QueueStatus,
    ServedStatus,
    SystemStatus,
    TrainingStatus,
)
from registry.store import Transaction
from workers import projections, steering, training_statuses
from workers.context import Context
from workers.contracts import TRAINING_QUEUES
from workers.outlook import Outlook, look_ahead
from workers.surroundings import read_surroundings

HTTP_SECONDS = 2.0
MAX_JOBS = 50
MISSED_TICKS = 3  # one may be late, two may be unlucky
WORKERS = ("control", "train", "intelligence")


def system_status(context: Context, *, nodes: Sequence[str] | None = None) -> SystemStatus:
    """Ask every part, read the registry, and say both. Never raises for a part that is down.

    `nodes` are the workers that answered just now, where the caller asked them already.
    """
    now = context.registry.clock()
    settings = context.settings
    redis_part, depths = redis_status(settings, now=now)
    server_part, release = server_status(settings, now=now)
    if nodes is None and redis_part.state == "up":
        nodes = steering.answering_nodes(context.celery)
    workers = worker_status(nodes, now=now)
    parts: list[PartStatus] = [redis_part, *workers, server_part, flower_status(settings, now=now)]
    try:
        surroundings = read_surroundings(context.registry)
        with context.registry.reading() as tx:
            outlook = look_ahead(tx, rules=settings.queue)
            return SystemStatus(
                written_at=now,
                stale_after_seconds=projections.STALE_AFTER_SECONDS,
                home=str(settings.home),
                parts=(
                    *parts,
                    beat_status(tx, sweep_seconds=settings.schedule.sweep_seconds),
                    PartStatus(name="registry", state="up", observed_at=now),
                ),
                training=training_statuses.current(tx, surroundings=surroundings),
                queues=tuple(_queue(tx, name=name, depths=depths, outlook=outlook) for name in Priority),
                jobs=tuple(outlook.line(job_line(job, now=now), job=job, tx=tx) for job in recent_jobs(tx)),
                checkpoints=tuple(checkpoint_lines(tx)),
                served=_served(tx, release=release, now=now),
            )
    except RegistryUnavailable as error:
        part = PartStatus(name="registry", state="down", detail=error.message, observed_at=now)
        return _without_registry(settings, parts=(*parts, part), release=release, now=now)


def redis_status(settings: Settings, *, now: datetime) -> tuple[PartStatus, dict[str, int] | None]:
    """Is Redis up, and how many messages wait in each training queue (None where that is unknown)."""
    client = Redis.from_url(
        settings.redis_url, socket_timeout=HTTP_SECONDS, socket_connect_timeout=HTTP_SECONDS
    )
    try:
        with client:
            depths = {name: int(str(client.llen(name))) for name in TRAINING_QUEUES}
    except (RedisError, OSError) as error:
        return PartStatus(name="redis", state="down", detail=str(error), observed_at=now), None
    return PartStatus(name="redis", state="up", observed_at=now), depths


def worker_status(nodes: Sequence[str] | None, *, now: datetime) -> list[PartStatus]:
    """Which workers answered a ping; `unknown` where Redis could not carry the question (None)."""
    if nodes is None:
        detail = "Redis is down, so no worker can be asked"
        return [PartStatus(name=name, state="unknown", detail=detail, observed_at=now) for name in WORKERS]
    return [_worker_part(name, nodes=nodes, now=now) for name in WORKERS]


def server_status(settings: Settings, *, now: datetime) -> tuple[PartStatus, str | None]:
    """What the inference server says of itself, and the release that it answers with."""
    try:
        answer = httpx.get(f"{settings.server_url}/health", timeout=HTTP_SECONDS)
        health: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        detail = f"{settings.server_url}: {error}"
        return PartStatus(name="server", state="down", detail=detail, observed_at=now), None
    release = health.get("release_id")
    detail = f"{health.get('status', 'no status')}, release {release or 'none'}"
    return PartStatus(name="server", state="up", detail=detail, observed_at=now), release


def flower_status(settings: Settings, *, now: datetime) -> PartStatus:
    """Whether Flower answers at all; it asks for its password."""
    url = f"http://127.0.0.1:{settings.flower.port}/"
    try:
        answer = httpx.get(url, timeout=HTTP_SECONDS)
    except httpx.HTTPError as error:
        return PartStatus(name="flower", state="down", detail=f"{url}: {error}", observed_at=now)
    state: PartState = "down" if answer.is_server_error else "up"
    return PartStatus(name="flower", state=state, detail=url, observed_at=now)


def beat_status(tx: Transaction, *, sweep_seconds: float) -> PartStatus:
    """By the age of the last sweep: beat answers no questions. `unknown` before the first one."""
    last = asks.last_put(tx, kind="tick", subject_id="sweep")
    if last is None:
        return PartStatus(name="beat", state="unknown", detail="no tick was seen yet", observed_at=tx.now)
    age_seconds = max(0.0, (tx.now - last).total_seconds())
    state: PartState = "up" if age_seconds < MISSED_TICKS * sweep_seconds else "down"
    return PartStatus(name="beat", state=state, detail=f"last tick {age_seconds:.0f} s ago", observed_at=last)


def recent_jobs(tx: Transaction) -> list[TrainingJob]:
    """The newest, and whichever run or are paused, however long ago they came; in order of submission."""
    newest = tx.find(TrainingJob, newest_first="submitted_at", limit=MAX_JOBS)
    begun = tx.find(TrainingJob, state=[JobState.RUNNING, JobState.PAUSED])
    found = {job.id: job for job in (*newest, *begun)}
    return sorted(found.values(), key=lambda job: (job.submitted_at, job.id))


def checkpoint_lines(tx: Transaction) -> list[CheckpointStatus]:
    """Every checkpoint with its numbers on the active suite, oldest first."""
    suite = lineage.active_suite(tx)
    ranking = None if suite is None else lineage.newest_ranking(tx, suite_id=suite.id)
    ranks = {entry.checkpoint_id: entry.rank for entry in ranking.entries} if ranking else {}
    active = lineage.active_deployment(tx)
    served_id = active.checkpoint_id if active else None
    suite_id = suite.id if suite else ""
    answered = tx.find(Evaluation, suite_id=suite_id, state=EvaluationState.ANSWERED)
    evaluations = {evaluation.checkpoint_id: evaluation for evaluation in answered}
    newest_first = tx.find(Verdict, suite_id=suite_id, newest_first="decided_at")
    verdicts = {verdict.checkpoint_id: verdict for verdict in reversed(newest_first)}
    found = sorted(tx.find(Checkpoint), key=lambda checkpoint: (checkpoint.created_at, checkpoint.id))
    return [
        _checkpoint(
            checkpoint,
            evaluation=evaluations.get(checkpoint.id),
            verdict=verdicts.get(checkpoint.id),
            rank=ranks.get(checkpoint.id),
            is_served=checkpoint.id == served_id,
        )
        for checkpoint in found
    ]


def _worker_part(name: str, *, nodes: Sequence[str], now: datetime) -> PartStatus:
    mine = [node for node in nodes if node.split("@")[0].startswith(name)]
    detail = ", ".join(mine) or f"no answer in {steering.PING_SECONDS:g} s"
    return PartStatus(name=name, state="up" if mine else "down", detail=detail, observed_at=now)


def _queue(
    tx: Transaction, *, name: Priority, depths: dict[str, int] | None, outlook: Outlook
) -> QueueStatus:
    jobs = [job for job in outlook.waiting if job.priority is name]
    return QueueStatus(
        name=name,
        num_waiting=len(jobs),
        num_messages=None if depths is None else depths[name],
        oldest_age_seconds=queue.oldest_wait_seconds(jobs, now=tx.now),
        first_jobs=outlook.queued(priority=name, tx=tx),
    )


def job_line(job: TrainingJob, *, now: datetime) -> JobStatus:
    progress = job.progress
    last_change = job.finished_at or job.started_at or job.queued_at or job.submitted_at
    return JobStatus(
        id=job.id,
        name=job.name,
        state=job.state,
        priority=job.priority,
        step=progress.step if progress else None,
        num_steps=progress.num_steps if progress else None,
        loss=progress.loss if progress else None,
        tokens_per_second=progress.tokens_per_second if progress and not is_final(job.state) else None,
        attempts=job.attempts,
        reason=job.problems[-1].message if job.problems else "",
        age_seconds=max(0.0, (now - last_change).total_seconds()),
    )


def _checkpoint(
    checkpoint: Checkpoint,
    *,
    evaluation: Evaluation | None,
    verdict: Verdict | None,
    rank: int | None,
    is_served: bool,
) -> CheckpointStatus:
    summary = evaluation.summary if evaluation else None
    return CheckpointStatus(
        id=checkpoint.id,
        state=checkpoint.state,
        step=checkpoint.step,
        job_id=checkpoint.job_id,
        loss=summary.loss if summary else None,
        accuracy=summary.known_accuracy if summary else None,
        accuracy_by_difficulty=summary.known_accuracy_by_difficulty if summary else {},
        verdict=verdict.outcome if verdict else None,
        verdict_reasons=verdict.reasons if verdict else (),
        rank=rank,
        is_served=is_served,
        created_at=checkpoint.created_at,
    )


def _served(tx: Transaction, *, release: str | None, now: datetime) -> ServedStatus:
    active = lineage.active_deployment(tx)
    release_id = active.id if active else None
    return ServedStatus(
        release_id=release_id,
        checkpoint_id=active.checkpoint_id if active else None,
        reported_by_server=release,
        agrees=None if release is None else release == release_id,
        observed_at=now,
    )


def _without_registry(
    settings: Settings, *, parts: tuple[PartStatus, ...], release: str | None, now: datetime
) -> SystemStatus:
    unknown = TrainingStatus(
        status="unknown", reason="the registry cannot be read", written_at=now, stale_after_seconds=1
    )
    return SystemStatus(
        written_at=now,
        stale_after_seconds=projections.STALE_AFTER_SECONDS,
        home=str(settings.home),
        parts=parts,
        training=unknown,
        queues=(),
        jobs=(),
        checkpoints=(),
        served=ServedStatus(
            release_id=None, checkpoint_id=None, reported_by_server=release, agrees=None, observed_at=now
        ),
    )
