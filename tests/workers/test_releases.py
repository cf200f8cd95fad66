"""What may take the place of the served checkpoint, by the registry."""

import pytest

from config.settings import Settings
from deploy.errors import NotDeployable
from deploy.testing import FakeDoor, FakeTarget
from registry import leases
from registry.records import Deployment, Evaluation
from registry.states import EvaluationState
from registry.store import Registry
from registry.testing import START, make_deployment, make_evaluation, make_ranking, make_suite
from workers.releases import RESOURCE, Releases
from workers.testing_evaluations import add_evaluated, right_on


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
        tx.add(make_ranking("best", suite_id="suite-2"), actor="test")
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
