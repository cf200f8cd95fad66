"""What may take the place of the served checkpoint, by the registry, and what is left of who died at it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import pytest

import workers.releases
from config.settings import Settings, load_settings
from deploy.door import HttpDoor
from deploy.errors import NotDeployable, ServerDown, ServerFailed
from deploy.exchange import Answer, Question, SlowAnswer
from deploy.testing import FakeDoor, FakeTarget
from registry import leases
from registry.manifests import FileEntry, Manifest
from registry.records import Deployment, Evaluation, Lease
from registry.serving import SetActiveAnswer
from registry.states import CheckpointState, DeploymentState, EvaluationState
from registry.store import Registry
from registry.testing import (
    SHA,
    START,
    make_checkpoint,
    make_deployment,
    make_evaluation,
    make_ranking,
    make_suite,
)
from workers.releases import RESOURCE, Releases, open_serving_host
from workers.testing_evaluations import add_evaluated, right_on

LATER = {"id": "rank-2", "evidence_sha256": "1" * 64, "made_at": START + timedelta(seconds=1)}


@pytest.fixture
def releases(registry: Registry, settings: Settings) -> Releases:
    """`served` is served, `best` leads a ranking on a suite on which `served` is not evaluated yet."""
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for name in ("served", "best"):
            add_evaluated(tx, name, examples=right_on(20))
        tx.add(
            make_deployment(id="r1", checkpoint_id="served"),
            actor="test",
        )
        tx.update(make_suite(), is_active=False)
        tx.add(make_suite(id="suite-2", content_sha256="2" * 64), actor="test")
        tx.add(make_evaluation(id="asked", checkpoint_id="served", suite_id="suite-2"), actor="test")
        tx.add(make_ranking("best", suite_id="suite-2", served_checkpoint_id="served"), actor="test")
        lease = leases.acquire(tx, resource=RESOURCE, holder="test", seconds=60)
    assert lease is not None
    target = FakeTarget()
    return Releases(
        registry=registry,
        settings=settings,
        lease=lease,
        actor="test",
        target=target,
        door=FakeDoor(target, now=START),
    )


def test_the_best_of_a_ranking_without_the_served_checkpoint_does_not_take_its_place(
    releases: Releases, registry: Registry
) -> None:
    with pytest.raises(NotDeployable, match=r"served, is not evaluated on suite-2 yet.*deploy now best"):
        releases.sync(requested_checkpoint_id=None)
    with registry.transaction() as tx:
        tx.transition(tx.get(Evaluation, "asked"), to=EvaluationState.FAILED, actor="test", reason="test")
    with pytest.raises(NotDeployable, match="best has no calibration yet"):
        releases.sync(requested_checkpoint_id=None)
    with registry.reading() as tx:
        assert [one.id for one in tx.find(Deployment)] == ["r1"]


def test_a_person_may_name_another_one_meanwhile(releases: Releases) -> None:
    deployment = releases.sync(requested_checkpoint_id="best")
    assert (deployment.checkpoint_id, deployment.reason[:17]) == ("best", "asked for by name")


OLD, NEW = "r000001-aaaaaaaa", "r000002-bbbbbbbb"
UNFINISHED = (DeploymentState.PLANNED, DeploymentState.SYNCING, DeploymentState.VERIFIED)


@dataclass
class Desk:
    """A registry, and a host that keeps and serves two releases: what a deployer that died may leave."""

    registry: Registry
    settings: Settings
    target: FakeTarget
    door: FakeDoor

    def add(self, *deployments: Deployment) -> None:
        with self.registry.transaction() as tx:
            for deployment in deployments:
                tx.add(deployment, actor="test")

    def sync(self) -> Deployment:
        return self.releases().sync(requested_checkpoint_id=None)

    def releases(self) -> Releases:
        """Of a deployer that has taken over."""
        with self.registry.transaction() as tx:
            if held := tx.seek(Lease, RESOURCE):
                leases.release(tx, held)
            lease = leases.acquire(tx, resource=RESOURCE, holder="test", seconds=60)
        assert lease is not None
        return Releases(
            registry=self.registry,
            settings=self.settings,
            lease=lease,
            actor="test",
            target=self.target,
            door=self.door,
        )

    def states(self) -> dict[str, str]:
        with self.registry.reading() as tx:
            return {one.id: str(one.state) for one in tx.find(Deployment)}


@pytest.fixture
def desk(registry: Registry, settings: Settings) -> Desk:
    """The old release is served and leads the ranking."""
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for name in ("served", "best"):
            add_evaluated(tx, name, examples=right_on(20))
        tx.add(make_ranking("served", "best"), actor="test")
    target = FakeTarget()
    files = {"model.safetensors": FileEntry(sha256=SHA, num_bytes=1)}
    for name in (OLD, NEW):
        target.releases[name] = Manifest(
            files=files, weights_sha256=SHA, code_version="test", created_at=START
        )
    target.activate(OLD)
    return Desk(registry, settings, target, FakeDoor(target, now=START, release_id=OLD))


def old(**changes: object) -> Deployment:
    return make_deployment(id=OLD, checkpoint_id="served", **changes)


def new(state: DeploymentState) -> Deployment:
    return make_deployment(id=NEW, generation=2, checkpoint_id="best", state=state, activated_at=None)


@pytest.mark.parametrize("state", UNFINISHED)
def test_what_was_killed_before_the_flip_is_ended_and_what_is_current_is_served(
    desk: Desk, state: DeploymentState
) -> None:
    desk.add(old(), new(state))
    desk.door.release_id = NEW
    assert desk.sync().id == OLD
    assert desk.states() == {OLD: "active", NEW: "failed"}
    assert desk.door.release_id == desk.target.current() == OLD
    with desk.registry.reading() as tx:
        assert tx.get(Deployment, NEW).problem == f"interrupted while {state}"


def test_what_was_killed_after_the_flip_became_active(desk: Desk) -> None:
    desk.add(old(), new(DeploymentState.VERIFIED))
    desk.target.activate(NEW)
    desk.door.release_id = NEW
    with pytest.raises(NotDeployable, match="rank-1 was made when nothing was served, not best"):
        desk.sync()
    with desk.registry.reading() as tx:
        ended = tx.get(Deployment, OLD), tx.get(Deployment, NEW)
    assert [one.state for one in ended] == [DeploymentState.SUPERSEDED, DeploymentState.ACTIVE]
    assert ended[1].activated_at is not None


@pytest.mark.parametrize("state", [DeploymentState.PLANNED, DeploymentState.SYNCING])
def test_what_bears_the_name_of_the_current_one_but_was_not_verified_never_became_active(
    desk: Desk, state: DeploymentState
) -> None:
    desk.add(old(), new(state))
    desk.target.activate(NEW)
    desk.sync()
    assert desk.states()[NEW] == "failed"


def nothing(desk: Desk) -> None:
    desk.door.release_id = None


def another(desk: Desk) -> None:
    desk.door.release_id = NEW


@pytest.mark.parametrize("harm", [nothing, another])
def test_a_server_that_does_not_serve_what_is_current_is_mended_where_nothing_is_deployed(
    desk: Desk, harm: Callable[[Desk], None]
) -> None:
    desk.add(old())
    harm(desk)
    assert desk.sync().id == OLD
    assert desk.door.release_id == OLD


def test_it_is_mended_also_where_the_best_may_not_be_deployed(desk: Desk) -> None:
    desk.add(old(), new(DeploymentState.VERIFIED))
    with desk.registry.transaction() as tx:
        tx.add(make_ranking("best", "served", served_checkpoint_id="served", **LATER), actor="test")
    another(desk)
    with pytest.raises(NotDeployable, match="best has no calibration yet"):
        desk.sync()
    assert desk.door.release_id == OLD
    assert desk.states()[NEW] == "failed"


def test_a_ranking_from_before_what_is_served_takes_nothing_back(desk: Desk) -> None:
    """Deployed by name a moment ago: the ranking held it against what was served then."""
    desk.add(old())
    with desk.registry.transaction() as tx:
        tx.add(make_ranking("best", "served", served_checkpoint_id="best", **LATER), actor="test")
    with pytest.raises(NotDeployable, match="rank-2 was made when best was served, not served"):
        desk.sync()
    assert desk.states() == {OLD: "active"}


def test_a_server_that_is_down_hinders_no_one_from_saying_what_is_served(desk: Desk) -> None:
    desk.add(old())
    desk.door.is_down = True
    assert desk.sync().id == OLD


def test_a_rollback_that_died_before_it_was_saved_is_saved(desk: Desk) -> None:
    desk.add(
        old(state=DeploymentState.SUPERSEDED),
        make_deployment(id=NEW, generation=2, checkpoint_id="best"),
    )
    assert desk.sync().id == OLD
    assert desk.states() == {OLD: "active", NEW: "rolled_back"}


def replaced(desk: Desk) -> Deployment:
    """The new one is served, the old one was before."""
    served = make_deployment(id=NEW, generation=2, checkpoint_id="best")
    desk.add(old(state=DeploymentState.SUPERSEDED), served)
    desk.target.activate(NEW)
    desk.door.release_id = NEW
    return served


@pytest.mark.parametrize("is_up", [True, False])
def test_a_release_that_kills_its_server_is_withdrawn_whether_that_is_up_just_then(
    desk: Desk, is_up: bool
) -> None:
    served = replaced(desk)
    desk.door.is_down = not is_up
    assert desk.releases().withdraw(served, reason="it dies", is_down=True).id == OLD
    assert desk.target.current() == OLD
    assert desk.states() == {OLD: "active", NEW: "rolled_back"}
    desk.door.is_down = False
    assert desk.door.health().release_id == (OLD if is_up else NEW)


def test_what_fails_its_requests_is_not_withdrawn_without_its_server(desk: Desk) -> None:
    served = replaced(desk)
    desk.door.is_down = True
    with pytest.raises(ServerDown):
        desk.releases().withdraw(served, reason="it fails")
    assert desk.target.current() == NEW
    assert desk.states()[NEW] == "active"


def test_what_is_not_served_any_more_is_not_withdrawn(desk: Desk) -> None:
    served = replaced(desk)
    desk.releases().roll_back(release_id=None, reason="by a person")
    with pytest.raises(NotDeployable, match="is not served any more"):
        desk.releases().withdraw(served, reason="it dies", is_down=True)


def test_a_vllm_that_takes_minutes_to_start_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that needs ten minutes, and tells who asks with less patience."""

    def exchange(asked: Question) -> Answer:
        if asked.seconds < 600:
            raise SlowAnswer("too slow")
        answer = SetActiveAnswer(release_id=NEW, weights_sha256=SHA, previous_release_id=OLD, loaded_at=START)
        return Answer(200, content=answer.model_dump_json().encode())

    monkeypatch.setattr(workers.releases, "HttpDoor", partial(HttpDoor, exchange=exchange))
    with open_serving_host(settings) as (_, door), pytest.raises(ServerFailed, match="did not answer"):
        door.set_active(NEW)
    with open_serving_host(load_settings(home=settings.home, server={"engine": "vllm"})) as (_, door):
        assert door.set_active(NEW).release_id == NEW


def open_on(
    target: FakeTarget, *, registry: Registry, settings: Settings, lease: Lease, message_id: str | None = None
) -> Releases:
    return Releases(
        registry=registry,
        settings=settings,
        lease=lease,
        actor="test",
        target=target,
        door=FakeDoor(target, now=START),
        message_id=message_id,
    )


def active(registry: Registry) -> str:
    with registry.reading() as tx:
        (found,) = tx.find(Deployment, state=DeploymentState.ACTIVE)
    return found.id


def test_a_rollback_that_is_delivered_five_times_goes_back_once(
    registry: Registry, settings: Settings
) -> None:
    target, names = FakeTarget(), [f"r00000{number}-aaaaaaaa" for number in (1, 2, 3)]
    files = {"model.safetensors": FileEntry(sha256=SHA, num_bytes=1)}
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="c", state=CheckpointState.ACCEPTED), actor="test")
        for generation, name in enumerate(names, start=1):
            state = DeploymentState.ACTIVE if name == names[-1] else DeploymentState.SUPERSEDED
            row = make_deployment(id=name, generation=generation, checkpoint_id="c", state=state)
            tx.add(row, actor="test")
            target.releases[name] = Manifest(
                files=files, weights_sha256=SHA, code_version="0", created_at=START
            )
            target.activate(name)
        lease = leases.acquire(tx, resource=RESOURCE, holder="test", seconds=60)
    assert lease is not None
    releases = open_on(target, registry=registry, settings=settings, lease=lease, message_id="m-1")
    answers = [releases.roll_back(release_id=None, reason="test").id for _ in range(5)]
    assert answers == [names[1]] * 5
    assert (active(registry), target.current()) == (names[1], names[1])
    another = open_on(target, registry=registry, settings=settings, lease=lease, message_id="m-2")
    assert another.roll_back(release_id=None, reason="test").id == names[0]


def test_a_deployment_that_is_delivered_again_does_not_displace_what_came_after(
    registry: Registry, settings: Settings
) -> None:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for name in ("first", "second"):
            add_evaluated(tx, name, examples=right_on(20))
        tx.add(make_deployment(id="r1", checkpoint_id="first"), actor="test")
        lease = leases.acquire(tx, resource=RESOURCE, holder="test", seconds=60)
    assert lease is not None
    releases = open_on(FakeTarget(), registry=registry, settings=settings, lease=lease, message_id="m-1")
    assert releases.sync(requested_checkpoint_id="first").id == "r1"
    with registry.transaction() as tx:
        tx.transition(tx.get(Deployment, "r1"), to=DeploymentState.SUPERSEDED, actor="test")
        tx.add(make_deployment(id="r2", generation=2, checkpoint_id="second"), actor="test")
    for _ in range(4):
        assert releases.sync(requested_checkpoint_id="first").id == "r2"
    assert active(registry) == "r2"
