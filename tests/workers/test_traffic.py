"""When a young release is looked at, and what is seen there."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import workers.traffic
from config.settings import Settings
from deploy.errors import ServerFailed
from deploy.testing import FakeDoor, FakeTarget
from registry.records import Deployment
from registry.reports import Alert
from registry.serving import ReleaseTraffic
from registry.states import DeploymentState
from registry.store import Registry
from registry.testing import START, ManualClock, make_checkpoint, make_deployment, make_suite
from workers import traffic


@pytest.fixture
def active(registry: Registry) -> Deployment:
    record = make_deployment()
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(make_checkpoint(id=record.checkpoint_id), actor="test")
        tx.add(record, actor="test")
    return record


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> FakeDoor:
    fake = FakeDoor(FakeTarget(), now=START)

    @contextmanager
    def opened(_settings: Settings) -> Iterator[tuple[None, FakeDoor]]:
        yield None, fake

    monkeypatch.setattr(workers.traffic, "open_serving_host", opened)
    return fake


def counted(num_errors: int, *, of: int, release_id: str = "r000001-aaaaaaaa") -> ReleaseTraffic:
    return ReleaseTraffic(release_id=release_id, since=START, num_requests=of, num_errors=num_errors)


def owed(registry: Registry, settings: Settings) -> list[str]:
    with registry.transaction() as tx:
        return [message.task for message in traffic.owed(tx, settings=settings)]


def test_a_young_release_is_looked_at_now_and_then_until_it_is_old(
    registry: Registry, settings: Settings, clock: ManualClock, active: Deployment
) -> None:
    assert owed(registry, settings) == ["deployment.watch"]
    assert owed(registry, settings) == []
    clock.advance(traffic.LOOK_SECONDS)
    assert owed(registry, settings) == ["deployment.watch"]
    clock.advance(settings.deployment.traffic.watch_seconds)
    assert owed(registry, settings) == []


def test_a_release_that_was_returned_to_is_not_judged(
    registry: Registry, settings: Settings, active: Deployment
) -> None:
    withdrawn = make_deployment(id="r000002-bbbbbbbb", generation=2, state=DeploymentState.ROLLED_BACK)
    with registry.transaction() as tx:
        tx.add(withdrawn, actor="test")
    assert owed(registry, settings) == []


def test_a_newer_one_that_never_became_active_changes_nothing(
    registry: Registry, settings: Settings, active: Deployment
) -> None:
    failed = make_deployment(
        id="r000002-bbbbbbbb", generation=2, state=DeploymentState.FAILED, activated_at=None
    )
    with registry.transaction() as tx:
        tx.add(failed, actor="test")
    assert owed(registry, settings) == ["deployment.watch"]


@pytest.mark.parametrize(
    "told",
    [
        None,
        counted(0, of=0),
        counted(5, of=5),
        counted(0, of=1000),
        counted(1000, of=1000, release_id="r000009-cccccccc"),
    ],
)
def test_an_idle_a_healthy_and_another_release_are_left_alone(
    registry: Registry,
    settings: Settings,
    active: Deployment,
    door: FakeDoor,
    told: ReleaseTraffic | None,
) -> None:
    door.traffic = told
    assert traffic.look(registry, settings=settings) is None


def test_a_server_that_cannot_be_asked_proves_nothing(
    registry: Registry, settings: Settings, active: Deployment, door: FakeDoor
) -> None:
    door.is_down = True
    with pytest.raises(ServerFailed):
        door.health()
    assert traffic.look(registry, settings=settings) is None


def test_a_failing_release_is_told_once(
    registry: Registry, settings: Settings, active: Deployment, door: FakeDoor
) -> None:
    door.traffic = counted(30, of=40)
    failing = traffic.look(registry, settings=settings)
    assert failing is not None
    assert failing.deployment == active
    for _ in range(2):
        traffic.tell(registry, failing, actor="test")
    with registry.reading() as tx:
        (alert,) = tx.find(Alert)
    assert "30 of 40 requests failed" in alert.message
