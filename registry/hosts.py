"""Hosts whose workers were seen, and whether they take new work."""

from __future__ import annotations

from typing import NamedTuple

from registry.errors import NotFound
from registry.records import Host, TrainingJob
from registry.states import JobState
from registry.store import Transaction

NOT_DONE = (JobState.SUBMITTED, JobState.QUEUED, JobState.RUNNING)


def saw(tx: Transaction, *, name: str, role: str) -> Host:
    """Note that a worker of this role answered on this host."""
    host = tx.seek(Host, name)
    if host is None:
        host = Host(id=name, roles=(role,), seen_at=tx.now)
        tx.insert(host)
        return host
    roles = tuple(sorted({*host.roles, role}))
    return tx.update(host, roles=roles, seen_at=tx.now)


def drain(
    tx: Transaction, *, name: str, after_job_id: str | None = None, actor: str, reason: str = ""
) -> Host:
    """Let a host finish what it has and take nothing new, at once or as soon as a job is done."""
    host = known(tx, name=name)
    if after_job_id is not None:
        tx.get(TrainingJob, after_job_id)
    when = f"after {after_job_id}" if after_job_id else "at once"
    _log(tx, host, after="draining", actor=actor, reason=f"{when}. {reason}".strip())
    return tx.update(host, is_draining=True, drain_after_job_id=after_job_id, reason=reason)


def undrain(tx: Transaction, *, name: str, actor: str, reason: str = "") -> Host:
    """Let a host take work again; harmless where it does."""
    host = known(tx, name=name)
    _log(tx, host, after="taking work", actor=actor, reason=reason)
    return tx.update(host, is_draining=False, drain_after_job_id=None, reason="")


class Standing(NamedTuple):
    """Why a host takes no new work, and what keeps its training worker from beginning; empty if it can."""

    obstacle: str = ""
    waits_for: str = ""


def standing(tx: Transaction, *, name: str) -> Standing:
    """How it is with a host; one that was never seen has nothing in its way."""
    host = tx.seek(Host, name)
    return Standing() if host is None else Standing(_obstacle(tx, host), host.waits_for)


def obstacle(tx: Transaction, *, name: str) -> str:
    """Why a host takes no new work; empty where it does."""
    return standing(tx, name=name).obstacle


def standstill(tx: Transaction) -> str:
    """Why no training host begins anything; empty while one may, or where none was seen yet."""
    reasons = []
    for host in tx.find(Host):
        if "train" not in host.roles:
            continue
        reason = _obstacle(tx, host) or host.waits_for
        if not reason:
            return ""
        reasons.append(reason)
    return "; ".join(reasons)


def note_obstacle(tx: Transaction, *, name: str, obstacle: str, actor: str) -> Host:
    """Keep what a host waits for, or that it waits no more."""
    host = saw(tx, name=name, role="train")
    tx.log(
        kind="Host",
        subject_id=name,
        before="waiting" if host.waits_for else "ready",
        after="waiting" if obstacle else "ready",
        actor=actor,
        reason=obstacle,
    )
    return tx.update(host, waits_for=obstacle)


def known(tx: Transaction, *, name: str) -> Host:
    """The host; `NotFound` lists those that were seen."""
    host = tx.seek(Host, name)
    if host is not None:
        return host
    seen = ", ".join(found.id for found in tx.find(Host)) or "none yet"
    raise NotFound(f"No worker was ever seen on a host {name!r}.", remedy=f"Hosts are: {seen}.")


def _obstacle(tx: Transaction, host: Host) -> str:
    if not host.is_draining:
        return ""
    if host.drain_after_job_id is not None:
        job = tx.seek(TrainingJob, host.drain_after_job_id)
        if job is not None and job.state in NOT_DONE:
            return ""
    why = f": {host.reason}" if host.reason else ""
    return f"{host.id} is drained{why}; `tandem undrain {host.id}` lets it take work again"


def _log(tx: Transaction, host: Host, *, after: str, actor: str, reason: str) -> None:
    before = "draining" if host.is_draining else "taking work"
    tx.log(kind="Host", subject_id=host.id, before=before, after=after, actor=actor, reason=reason)
