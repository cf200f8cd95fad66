"""Who finds another deployment under way is told whose it is, and until when a dead one stands in the way."""

from pathlib import Path

from registry import leases
from registry.testing import ManualClock, make_registry
from tasks.deployment import under_way
from workers.releases import RESOURCE


def test_a_deployment_under_way_is_named_with_the_time_at_which_a_dead_one_gives_way(tmp_path: Path) -> None:
    clock = ManualClock()
    registry = make_registry(tmp_path, clock=clock)
    with registry.transaction() as tx:
        lease = leases.acquire(tx, resource=RESOURCE, holder="train:4711", seconds=60)
    assert lease is not None
    told = under_way(registry)
    assert told.message == "Another deployment is under way, by train:4711."
    assert f"may begin at {lease.expires_at:%H:%M:%S} UTC" in told.remedy
    clock.advance(60)
    assert "until this moment" in under_way(registry).message
