"""Draining is in effect only where that is known."""

from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisAway

from config.settings import Settings
from registry import hosts, queue
from registry.messages import Drain, Undrain
from registry.records import TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import add_queued_job
from workers import steering
from workers.context import Context
from workers.testing import SilentContext

UNKNOWN = "its intelligence worker did not answer"


class Control:
    """Remote control of workers: who answers a ping, what they work on, and what they were told."""

    def __init__(self, *nodes: str, **active: list[str]) -> None:
        self.nodes, self.working_on, self.is_away = nodes, active, False
        self.told: list[tuple[str, list[str]]] = []

    def ping(self, *, timeout: float) -> list[dict[str, str]]:
        del timeout
        self._reach()
        return [{node: "pong"} for node in self.nodes]

    def inspect(self, *, destination: list[str], timeout: float) -> "Control":
        del destination, timeout
        self._reach()
        return self

    def active(self) -> dict[str, Any] | None:
        found = {f"intelligence@{host}": names for host, names in self.working_on.items()}
        return {node: [{"name": name} for name in names] for node, names in found.items()} or None

    def broadcast(self, name: str, *, destination: list[str]) -> None:
        self._reach()
        self.told.append((name, destination))

    def _reach(self) -> None:
        if self.is_away:
            raise RedisAway("Redis is away.")


def context_of(settings: Settings, registry: Registry, control: Control) -> Context:
    celery: Any = SimpleNamespace(control=control)
    return SilentContext(settings=settings, registry=registry, celery=celery)


def train(registry: Registry, host: str) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        assert queue.claim_next(tx, queues=tuple(Priority), holder=f"{host}:1", seconds=60)


@pytest.fixture
def control() -> Control:
    return Control("train@mars", "intelligence@mars", mars=[])


@pytest.fixture
def context(settings: Settings, registry: Registry, control: Control) -> Context:
    return context_of(settings, registry, control)


def test_a_host_that_works_on_nothing_is_drained_at_once(context: Context, control: Control) -> None:
    drained = steering.drain(context, Drain(host="mars"))
    assert (drained.is_in_effect, drained.missing, drained.working_on) == (True, "", ())
    assert control.told == [("hold", ["intelligence@mars"])]


def test_a_host_that_trains_and_evaluates_finishes_both(
    context: Context, control: Control, registry: Registry
) -> None:
    train(registry, "mars")
    control.working_on["mars"] = ["evaluation.run"]
    drained = steering.drain(context, Drain(host="mars"))
    assert not drained.is_in_effect
    assert drained.missing == "it takes nothing new and finishes job-aaaaaa, evaluation.run"
    assert drained.working_on == ("job-aaaaaa", "evaluation.run")


def test_an_intelligence_worker_that_does_not_answer_leaves_it_unknown(
    context: Context, control: Control, registry: Registry
) -> None:
    control.working_on.clear()
    drained = steering.drain(context, Drain(host="mars"))
    assert not drained.is_in_effect
    assert UNKNOWN in drained.missing
    train(registry, "mars")
    drained = steering.drain(context, Drain(host="mars"))
    assert "finishes job-aaaaaa" in drained.missing
    assert UNKNOWN in drained.missing


def test_a_redis_that_is_away_leaves_it_unknown(
    context: Context, control: Control, registry: Registry
) -> None:
    with registry.transaction() as tx:
        hosts.saw(tx, name="mars", role="intelligence")
        hosts.saw(tx, name="train-only", role="train")
    control.is_away = True
    assert UNKNOWN in steering.drain(context, Drain(host="mars")).missing
    assert steering.drain(context, Drain(host="train-only")).is_in_effect


def test_draining_after_a_job_is_asked_for_until_the_job_has_ended(
    context: Context, control: Control, registry: Registry
) -> None:
    train(registry, "mars")
    asked = steering.drain(context, Drain(host="mars", after_job_id="job-aaaaaa"))
    assert (asked.is_in_effect, asked.missing) == (False, "it takes nothing new once job-aaaaaa is done")
    assert control.told == []
    with registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "job-aaaaaa"), to=JobState.SUCCEEDED, actor="mars:1")
    assert steering.drain(context, Drain(host="mars", after_job_id="job-aaaaaa")).is_in_effect
    assert control.told == [("hold", ["intelligence@mars"])]


def test_a_drain_that_is_delivered_again_after_undrain_is_not_called_in_effect(
    settings: Settings, registry: Registry, control: Control
) -> None:
    first = context_of(settings, registry, control)
    again = SilentContext(settings=settings, registry=registry, celery=first.celery, message_id="m-1")
    assert steering.drain(again, Drain(host="mars")).is_in_effect
    assert steering.undrain(first, Undrain(host="mars")).is_in_effect
    drained = steering.drain(again, Drain(host="mars"))
    assert (drained.is_in_effect, drained.host.is_draining) == (False, False)
    assert control.told == [("hold", ["intelligence@mars"]), ("release", ["intelligence@mars"])]


def test_the_sweep_tells_held_and_free_hosts_apart(context: Context, registry: Registry) -> None:
    with registry.transaction() as tx:
        for name in ("east", "west"):
            hosts.saw(tx, name=name, role="intelligence")
        hosts.drain(tx, name="west", actor="test")
        held, free = steering.hosts_to_tell(tx)
    assert ([host.id for host in held], [host.id for host in free]) == (["west"], ["east"])
