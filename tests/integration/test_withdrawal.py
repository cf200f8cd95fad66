"""A release that answers its trial and fails its users goes back by itself: real server, real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from config.settings import Settings, load_settings, setting_names
from deploy.deployer import deploy
from deploy.target import LocalTarget
from inference.server.app import make_app
from inference.server.config import ServerConfig
from inference.testing import build_fragile_model, build_sealed_tiny_model
from registry.manifests import read_manifest
from registry.messages import Nothing
from registry.records import Deployment
from registry.reports import Alert
from registry.states import CheckpointState, DeploymentState
from registry.testing import make_checkpoint, make_registry, make_suite
from tasks.deployment import watch
from tests.integration.real_server import real_server
from workers.app import app
from workers.context import Context
from workers.releases import open_serving_host

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Of a home whose server listens on a port of its own."""
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    found = load_settings(home=tmp_path / "home")
    found.paths.prepare()
    found.paths.secret("server_admin_key")
    config = ServerConfig(
        releases_dir=found.paths.releases,
        admin_key_file=found.paths.secrets / "server_admin_key",
        device="cpu",
        num_threads=1,
        max_new_tokens=32,
    )
    with real_server(make_app(config)) as url:
        yield load_settings(home=tmp_path / "home", server={"port": int(url.rpartition(":")[2])})


@pytest.fixture
def context(settings: Settings, tmp_path: Path) -> Context:
    return Context(settings=settings, registry=make_registry(tmp_path), celery=app)


def serve(context: Context, source: Path, *, generation: int) -> Deployment:
    """Deploy as a worker would, each step saved."""
    sha256 = read_manifest(source).weights_sha256
    checkpoint = make_checkpoint(
        id=f"ckpt-{sha256[:6]}-00000010",
        path=str(source),
        state=CheckpointState.ACCEPTED,
        weights_sha256=sha256,
    )
    planned = Deployment(
        id=f"r{generation:06d}-{sha256[:8]}",
        generation=generation,
        checkpoint_id=checkpoint.id,
        state=DeploymentState.PLANNED,
        weights_sha256=sha256,
        reason="test",
        started_at=context.registry.clock(),
    )
    with context.registry.transaction() as tx:
        tx.add(checkpoint, actor="test")
        tx.add(planned, actor="test")

    def report(before: Deployment, after: Deployment) -> Deployment:
        changes = after.model_dump(exclude={"id", "state", "generation", "checkpoint_id", "reason"})
        with context.registry.transaction() as tx:
            if after.state is DeploymentState.ACTIVE:
                for active in tx.find(Deployment, state=DeploymentState.ACTIVE):
                    tx.transition(active, to=DeploymentState.SUPERSEDED, actor="test", reason="newer")
            return tx.transition(before, to=after.state, actor="test", reason=after.problem, **changes)

    with open_serving_host(context.settings) as (target, door):
        ended = deploy(
            planned,
            source=source,
            target=target,
            door=door,
            probe_prompt="cat",
            report=report,
            clock=context.registry.clock,
        )
    assert ended.state is DeploymentState.ACTIVE, ended.problem
    return ended


def ask(context: Context, prompt: str, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4} | fields
    return httpx.post(f"{context.settings.server_url}/v1/chat/completions", json=body, timeout=60)


def state_of(context: Context, deployment: Deployment) -> Deployment:
    with context.registry.reading() as tx:
        return tx.get(Deployment, deployment.id)


def test_a_release_that_fails_its_first_requests_is_taken_back_and_told_once(
    context: Context, tmp_path: Path
) -> None:
    with context.registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
    good = serve(context, build_sealed_tiny_model(tmp_path / "good", seed=1), generation=1)
    bad = serve(context, build_fragile_model(tmp_path / "bad", character="Z"), generation=2)

    assert watch(Nothing(), context) is None  # idle: nothing is known
    for _ in range(25):
        assert ask(context, "hello", temperature=9).status_code == 400  # the client's own fault
    assert watch(Nothing(), context) is None

    failed = [ask(context, "What is Z?") for _ in range(15)]
    assert {answer.status_code for answer in failed} == {500}
    assert {answer.json()["error"]["code"] for answer in failed} == {"model_failed"}
    assert {ask(context, "hello").status_code for _ in range(10)} == {200}
    health = httpx.get(f"{context.settings.server_url}/health").json()
    assert (health["traffic"]["num_requests"], health["traffic"]["num_errors"]) == (26, 15)

    former = watch(Nothing(), context)
    assert isinstance(former, Deployment)
    assert (former.id, former.state) == (good.id, DeploymentState.ACTIVE)
    assert state_of(context, bad).state is DeploymentState.ROLLED_BACK
    assert "15 of 26 requests failed" in state_of(context, bad).problem
    assert LocalTarget(context.settings.paths.releases).current() == good.id
    assert ask(context, "What is Z?").json()["model"] == good.id

    assert watch(Nothing(), context) is None
    with context.registry.reading() as tx:
        (alert,) = tx.find(Alert)
    assert alert.checkpoint_id == bad.checkpoint_id
