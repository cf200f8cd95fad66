"""Real models in a real directory, given to the real inference server over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from deploy.deployer import deploy, reactivate
from deploy.door import HttpDoor
from deploy.errors import ServerFailed
from deploy.plan import plan
from deploy.target import LocalTarget
from inference.server.app import make_app
from inference.server.config import ServerConfig
from inference.testing import build_sealed_tiny_model
from registry.manifests import read_manifest
from registry.records import Deployment
from registry.states import CheckpointState, DeploymentState
from registry.testing import make_checkpoint
from tests.integration.real_server import real_server

pytestmark = pytest.mark.integration
KEY = "admin-key-of-the-tests"


def now() -> datetime:
    return datetime.now(UTC)


def keep(_before: Deployment, after: Deployment) -> Deployment:
    return after


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    path = tmp_path / "releases"
    path.mkdir()
    return path


@pytest.fixture
def url(releases: Path, tmp_path: Path) -> Iterator[str]:
    torch.set_num_threads(1)
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    config = ServerConfig(
        port=0, releases_dir=releases, admin_key_file=key_file, device="cpu", num_threads=1, max_new_tokens=32
    )
    with real_server(make_app(config)) as url:
        yield url


@pytest.fixture
def door(url: str) -> HttpDoor:
    return HttpDoor(url, admin_key=KEY, timeout_seconds=60)


def deployed(generation: int, *, tmp_path: Path, releases: Path, door: HttpDoor) -> Deployment:
    source = build_sealed_tiny_model(tmp_path / f"checkpoint-{generation}", seed=generation)
    checkpoint = make_checkpoint(
        state=CheckpointState.ACCEPTED, weights_sha256=read_manifest(source).weights_sha256
    )
    planned = plan(checkpoint, active=None, generation=generation, reason="test", now=now())
    assert planned is not None
    return deploy(
        planned,
        source=source,
        target=LocalTarget(releases),
        door=door,
        probe_prompt="cat",
        report=keep,
        clock=now,
    )


def test_releases_are_served_replaced_refused_and_returned_to(
    tmp_path: Path, releases: Path, door: HttpDoor, url: str
) -> None:
    target = LocalTarget(releases)
    one = deployed(1, tmp_path=tmp_path, releases=releases, door=door)
    two = deployed(2, tmp_path=tmp_path, releases=releases, door=door)
    assert (one.state, two.state) == (DeploymentState.ACTIVE, DeploymentState.ACTIVE), (
        one.problem,
        two.problem,
    )
    assert door.health().release_id == target.current() == two.id
    assert door.health().weights_sha256 == two.weights_sha256

    stranger = HttpDoor(url, admin_key="another-key-of-someone", timeout_seconds=60)
    refused = deployed(3, tmp_path=tmp_path, releases=releases, door=stranger)
    assert refused.state is DeploymentState.FAILED
    assert "(401)" in refused.problem
    assert door.health().release_id == target.current() == two.id

    superseded = one.changed(state=DeploymentState.SUPERSEDED)
    reactivate(superseded, target=target, door=door, probe_prompt="cat")
    assert door.health().release_id == target.current() == one.id


def test_a_port_where_nobody_listens_is_a_server_that_cannot_be_reached() -> None:
    with pytest.raises(ServerFailed, match="cannot be reached"):
        HttpDoor("http://127.0.0.1:9", admin_key=KEY, timeout_seconds=5).health()


def test_a_broken_release_is_refused_by_the_server_itself(
    tmp_path: Path, releases: Path, door: HttpDoor
) -> None:
    one = deployed(1, tmp_path=tmp_path, releases=releases, door=door)
    target = LocalTarget(releases)
    target.push(tmp_path / "checkpoint-1", release_id="r000009-aaaaaaaa")
    config = releases / "r000009-aaaaaaaa" / "config.json"
    config.chmod(0o644)
    config.write_text("{}")
    with pytest.raises(ServerFailed, match="cannot be served"):
        door.set_active("r000009-aaaaaaaa")
    assert door.health().release_id == one.id
