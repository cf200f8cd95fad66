"""What a person does to jobs and hosts: commands, places in the queue, draining. One way for every door."""

from __future__ import annotations

from collections.abc import Iterable

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from registry import commands, hosts, order, queue
from registry.messages import CommandedJob, Drain, DrainedHost, JobCommand, Move, PriorityChange, Undrain
from registry.records import Host, Lease, TrainingJob
from registry.states import Command, JobState
from registry.store import Transaction
from workers.context import Context
from workers.contracts import EVALUATION, INTELLIGENCE
from workers.pipeline import bell

PING_SECONDS = 1.0
INTELLIGENCE_QUEUES = (EVALUATION, INTELLIGENCE)


def command(context: Context, request: JobCommand, *, what: Command) -> CommandedJob:
    """Give a job a command; a job that waits afterwards is rung for."""
    with context.registry.transaction() as tx:
        job, is_in_effect = commands.give(
            tx, job_id=request.job_id, command=what, actor=context.actor, reason=request.reason
        )
    _ring(context, job)
    return CommandedJob(job=job, is_in_effect=is_in_effect)


def set_priority(context: Context, request: PriorityChange) -> CommandedJob:
    """Put a job into another queue."""
    with context.registry.transaction() as tx:
        job = order.set_priority(
            tx, job_id=request.job_id, priority=request.priority, actor=context.actor, reason=request.reason
        )
    _ring(context, job)
    return CommandedJob(job=job, is_in_effect=True)


def move(context: Context, request: Move) -> CommandedJob:
    """Change a job's place in its queue."""
    with context.registry.transaction() as tx:
        job = order.move(
            tx,
            job_id=request.job_id,
            before_id=request.before_id,
            to_end=request.to_end,
            actor=context.actor,
            reason=request.reason,
        )
    return CommandedJob(job=job, is_in_effect=True)


def drain(context: Context, request: Drain) -> DrainedHost:
    """Let a host finish what it has and take nothing new."""
    nodes = answering_nodes(context.celery)
    with context.registry.transaction() as tx:
        note_hosts(tx, nodes=nodes)
        host = hosts.drain(
            tx,
            name=request.host,
            after_job_id=request.after_job_id,
            actor=context.actor,
            reason=request.reason,
        )
        is_now = bool(hosts.obstacle(tx, name=host.id))
        jobs = jobs_on(tx, host=host.id)
    if is_now:
        hold_back(context.celery, host=host)
    return DrainedHost(host=host, working_on=(*jobs, *_evaluations_on(context.celery, host=host)))


def undrain(context: Context, request: Undrain) -> DrainedHost:
    """Let a host take work again; what waits is rung for."""
    with context.registry.transaction() as tx:
        host = hosts.undrain(tx, name=request.host, actor=context.actor, reason=request.reason)
        waiting = queue.waiting(tx, rules=context.settings.queue)[:1]
        jobs = jobs_on(tx, host=host.id)
    for name in INTELLIGENCE_QUEUES:
        _tell(context.celery, "add_consumer", queue=name, host=host)
    context.ring(bell(job.id, priority=job.priority) for job in waiting)
    return DrainedHost(host=host, working_on=tuple(jobs))


def hold_back(celery: Celery, *, host: Host) -> None:
    """Stop the host's intelligence worker from taking messages; its training worker asks the registry."""
    for name in INTELLIGENCE_QUEUES:
        _tell(celery, "cancel_consumer", queue=name, host=host)


def answering_nodes(celery: Celery) -> list[str] | None:
    """Names (`role@host`) of the workers that answer; None where Redis cannot carry the question."""
    try:
        answers = celery.control.ping(timeout=PING_SECONDS) or []
    except (OperationalError, RedisError, OSError):
        return None
    return sorted(node for answer in answers for node in answer)


def note_hosts(tx: Transaction, *, nodes: Iterable[str] | None) -> None:
    """Remember which hosts there are, and with which roles."""
    for node in nodes or ():
        role, _, name = node.partition("@")
        hosts.saw(tx, name=name, role=role)


def drained_hosts(tx: Transaction) -> list[Host]:
    """Hosts that are to take no new work at this moment."""
    return [host for host in tx.find(Host, is_draining=True) if hosts.obstacle(tx, name=host.id)]


def jobs_on(tx: Transaction, *, host: str) -> list[str]:
    """Ids of the jobs that a host is training."""
    found = []
    for job in queue.running(tx):
        lease = tx.seek(Lease, queue.resource_of(job.id))
        if lease is not None and lease.holder.rpartition(":")[0] == host:
            found.append(job.id)
    return found


def _evaluations_on(celery: Celery, *, host: Host) -> list[str]:
    node = f"intelligence@{host.id}"
    try:
        active = celery.control.inspect(destination=[node], timeout=PING_SECONDS).active() or {}
    except (OperationalError, RedisError, OSError):
        return []
    return [str(task["name"]) for task in active.get(node) or []]


def _ring(context: Context, job: TrainingJob) -> None:
    if job.state is JobState.QUEUED:
        context.ring([bell(job.id, priority=job.priority)])


def _tell(celery: Celery, what: str, *, queue: str, host: Host) -> None:
    if "intelligence" not in host.roles:
        return
    try:
        getattr(celery.control, what)(queue, destination=[f"intelligence@{host.id}"])
    except (OperationalError, RedisError, OSError):
        return  # the sweep says it again
