"""When a young release is looked at, and what is seen there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import workers.traffic
from config.settings import Settings
from deploy.errors import ServerFailed
from deploy.testing import FakeDoor, FakeTarget
from registry.manifests import FileEntry, Manifest
from registry.records import Deployment
from registry.reports import Alert
from registry.serving import ReleaseTraffic
from registry.states import DeploymentState
from registry.store import Registry
from registry.testing import SHA, START, ManualClock, make_checkpoint, make_deployment, make_suite
from workers import traffic

RELEASE = "r000001-aaaaaaaa"


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
    target = FakeTarget()
    files = {"model.safetensors": FileEntry(sha256=SHA, num_bytes=1)}
    target.releases[RELEASE] = Manifest(
        files=files, weights_sha256=SHA, code_version="test", created_at=START
    )
    fake = FakeDoor(target, now=START, release_id=RELEASE)

    @contextmanager
    def opened(_settings: Settings) -> Iterator[tuple[None, FakeDoor]]:
        yield None, fake

    monkeypatch.setattr(workers.traffic, "open_serving_host", opened)
    return fake


def counted(num_errors: int, *, of: int, release_id: str = RELEASE) -> ReleaseTraffic:
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


def looked(registry: Registry, settings: Settings, *, times: int = 1) -> traffic.Failing | None:
    """What came of the last of so many looks, each at its time."""
    clock = registry.clock
    assert isinstance(clock, ManualClock)
    failing = None
    for _ in range(times):
        clock.advance(traffic.LOOK_SECONDS)
        failing = traffic.look(registry, settings=settings)
    return failing


def test_a_host_that_cannot_be_asked_proves_nothing(
    registry: Registry, settings: Settings, active: Deployment, door: FakeDoor
) -> None:
    door.is_cut_off = True
    with pytest.raises(ServerFailed):
        door.health()
    assert looked(registry, settings, times=10) is None


def down(door: FakeDoor) -> None:
    door.is_down = True


def empty_handed(door: FakeDoor) -> None:
    door.release_id, door.problem = None, "model.safetensors is damaged"


def begun_anew(door: FakeDoor) -> None:
    door.uptime_seconds = 2.0


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (down, "it is down"),
        (empty_handed, "it serves nothing: model.safetensors is damaged"),
        (begun_anew, "it began anew 2 s ago"),
    ],
)
def test_a_release_whose_server_does_not_stay_up_fails_at_the_third_look(
    registry: Registry,
    settings: Settings,
    active: Deployment,
    door: FakeDoor,
    trouble: Callable[[FakeDoor], None],
    words: str,
) -> None:
    trouble(door)
    assert looked(registry, settings, times=2) is None
    failing = looked(registry, settings)
    assert failing is not None
    assert (failing.deployment, failing.is_down) == (active, True)
    assert f"its server does not stay up: {words}, and was in trouble 3 looks running" in failing.reason


def test_one_restart_by_a_person_takes_no_release_back(
    registry: Registry, settings: Settings, active: Deployment, door: FakeDoor
) -> None:
    """It is down for a look, has begun anew at the next, loads for two, and stays."""
    door.is_down = True
    assert looked(registry, settings) is None
    door.is_down, door.release_id, door.is_starting, door.uptime_seconds = False, None, True, 5.0
    assert looked(registry, settings) is None
    door.uptime_seconds += traffic.LOOK_SECONDS
    assert looked(registry, settings) is None
    door.uptime_seconds += traffic.LOOK_SECONDS
    door.release_id = active.id
    assert looked(registry, settings) is None
    door.is_down = True
    assert looked(registry, settings, times=2) is None


def test_a_server_that_loads_between_two_deaths_is_in_trouble_all_the_same(
    registry: Registry, settings: Settings, active: Deployment, door: FakeDoor
) -> None:
    door.release_id, door.is_starting = None, True
    for _ in range(2):
        door.uptime_seconds = 3.0
        assert looked(registry, settings) is None
        door.uptime_seconds += traffic.LOOK_SECONDS
        assert looked(registry, settings) is None
    door.is_down = True
    assert looked(registry, settings) is not None


def test_a_server_that_is_older_than_its_release_is_well(
    registry: Registry, settings: Settings, active: Deployment, door: FakeDoor
) -> None:
    door.uptime_seconds = traffic.LOOK_SECONDS
    assert looked(registry, settings) is None
    for _ in range(4):
        door.uptime_seconds += traffic.LOOK_SECONDS
        assert looked(registry, settings) is None


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
