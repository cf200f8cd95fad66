"""What a person does to jobs and hosts: commands, places in the queue, draining. One way for every door."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from registry import commands, handled, hosts, order, queue
from registry.messages import CommandedJob, Drain, DrainedHost, JobCommand, Move, PriorityChange, Undrain
from registry.records import Host, Lease, TrainingJob
from registry.states import Command, JobState
from registry.store import Transaction
from workers.context import Context
from workers.contracts import HOLD, RELEASE
from workers.pipeline import bell

PING_SECONDS = 1.0


def command(context: Context, request: JobCommand, *, what: Command) -> CommandedJob:
    """Give a job a command; a job that waits afterwards is rung for.

    Here as below, a message that is delivered again changes nothing and tells how things stand.
    """
    with context.registry.transaction() as tx:
        if handled.note(tx, message_id=context.message_id):
            job, is_in_effect = commands.give(
                tx,
                job_id=request.job_id,
                command=what,
                actor=context.actor,
                reason=request.reason,
                rules=context.settings.queue,
            )
        else:
            job = tx.get(TrainingJob, request.job_id)
            is_in_effect = job.command is None
    _ring(context, job)
    return CommandedJob(job=job, is_in_effect=is_in_effect)


def set_priority(context: Context, request: PriorityChange) -> CommandedJob:
    """Put a job into another queue."""
    with context.registry.transaction() as tx:
        if not handled.note(tx, message_id=context.message_id):
            return CommandedJob(job=tx.get(TrainingJob, request.job_id), is_in_effect=True)
        job = order.set_priority(
            tx,
            job_id=request.job_id,
            priority=request.priority,
            actor=context.actor,
            reason=request.reason,
            rules=context.settings.queue,
        )
    _ring(context, job)
    return CommandedJob(job=job, is_in_effect=True)


def move(context: Context, request: Move) -> CommandedJob:
    """Change a job's place in its queue."""
    with context.registry.transaction() as tx:
        if not handled.note(tx, message_id=context.message_id):
            return CommandedJob(job=tx.get(TrainingJob, request.job_id), is_in_effect=True)
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
        if handled.note(tx, message_id=context.message_id):
            hosts.drain(
                tx,
                name=request.host,
                after_job_id=request.after_job_id,
                actor=context.actor,
                reason=request.reason,
            )
        host = hosts.known(tx, name=request.host)
        obstacle, jobs = hosts.obstacle(tx, name=host.id), jobs_on(tx, host=host.id)
    if obstacle:
        tell_hosts(context.celery, hold=[host])
    evaluations = _evaluations_on(context.celery, host=host)
    missing = _missing(host, is_held=bool(obstacle), jobs=jobs, evaluations=evaluations)
    return DrainedHost(
        host=host, working_on=(*jobs, *(evaluations or ())), is_in_effect=not missing, missing=missing
    )


def undrain(context: Context, request: Undrain) -> DrainedHost:
    """Let a host take work again; what waits is rung for."""
    with context.registry.transaction() as tx:
        if handled.note(tx, message_id=context.message_id):
            hosts.undrain(tx, name=request.host, actor=context.actor, reason=request.reason)
        host = hosts.known(tx, name=request.host)
        waiting = queue.waiting(tx, rules=context.settings.queue)[:1]
        jobs = jobs_on(tx, host=host.id)
    if not host.is_draining:
        tell_hosts(context.celery, release=[host])
    context.ring(bell(job.id, priority=job.priority) for job in waiting)
    return DrainedHost(host=host, working_on=tuple(jobs), is_in_effect=not host.is_draining)


def tell_hosts(celery: Celery, *, hold: Sequence[Host] = (), release: Sequence[Host] = ()) -> None:
    """Have intelligence workers take no messages, or take them again; training workers ask the registry."""
    for command_name, told in ((HOLD, hold), (RELEASE, release)):
        nodes = [_intelligence_node(host) for host in told if "intelligence" in host.roles]
        if not nodes:
            continue
        try:
            celery.control.broadcast(command_name, destination=nodes)
        except (OperationalError, RedisError, OSError):
            return  # the sweep says it again


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


def hosts_to_tell(tx: Transaction) -> tuple[list[Host], list[Host]]:
    """Hosts that are to take no new work at this moment, and the others."""
    held: list[Host] = []
    free: list[Host] = []
    for host in tx.find(Host):
        (held if hosts.obstacle(tx, name=host.id) else free).append(host)
    return held, free


def jobs_on(tx: Transaction, *, host: str) -> list[str]:
    """Ids of the jobs that a host is training."""
    return [job.id for job in queue.running(tx) if host_of(tx, job_id=job.id) == host]


def host_of(tx: Transaction, *, job_id: str) -> str | None:
    """The host that trains a job, or did last; None where none ever began it."""
    lease = tx.seek(Lease, queue.resource_of(job_id))
    return None if lease is None else lease.holder.rpartition(":")[0]


def _evaluations_on(celery: Celery, *, host: Host) -> tuple[str, ...] | None:
    """What its intelligence worker works on; None where that does not answer, so that nobody knows."""
    if "intelligence" not in host.roles:
        return ()
    node = _intelligence_node(host)
    try:
        active = celery.control.inspect(destination=[node], timeout=PING_SECONDS).active() or {}
    except (OperationalError, RedisError, OSError):
        return None
    return tuple(str(task["name"]) for task in active[node]) if node in active else None


def _missing(host: Host, *, is_held: bool, jobs: Sequence[str], evaluations: Sequence[str] | None) -> str:
    """What draining waits for before it is in effect; empty where it is."""
    if not host.is_draining:
        return "it was let work again meanwhile"
    if not is_held:
        return f"it takes nothing new once {host.drain_after_job_id} is done"
    work = (*jobs, *(evaluations or ()))
    finishes = f" and finishes {', '.join(work)}" if work else ""
    unknown = "; its intelligence worker did not answer, so what it works on is unknown"
    if finishes or evaluations is None:
        return f"it takes nothing new{finishes}{unknown if evaluations is None else ''}"
    return ""


def _ring(context: Context, job: TrainingJob) -> None:
    if job.state is JobState.QUEUED:
        context.ring([bell(job.id, priority=job.priority)])


def _intelligence_node(host: Host) -> str:
    return f"intelligence@{host.id}"
