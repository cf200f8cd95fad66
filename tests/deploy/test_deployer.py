"""Deployments on fakes: every way to fail, and a kill at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.deployer import deploy, mend, reactivate
from deploy.errors import DeployError, NotDeployable, ServerFailed, TransferFailed
from deploy.plan import plan
from deploy.testing import FakeDoor, FakeTarget
from registry.manifests import read_manifest
from registry.records import Deployment
from registry.states import CheckpointState, DeploymentState, check_transition
from registry.testing import START, ManualClock, make_checkpoint


class Ledger:
    """Saves what is reported, as the registry would: only legal steps, from the state that is saved."""

    def __init__(self) -> None:
        self.saved: dict[str, Deployment] = {}
        self.steps: list[str] = []
        self.on_step: Callable[[Deployment], None] = lambda _: None

    def __call__(self, before: Deployment, after: Deployment) -> Deployment:
        assert self.saved.get(before.id, before) == before
        check_transition(before.state, after=after.state)
        self.on_step(after)
        self.saved[after.id] = after
        self.steps.append(str(after.state))
        return after


class Stage:
    """A target, a door and a ledger, with a first release served."""

    def __init__(self, seal: Callable[..., Path]) -> None:
        self.seal = seal
        self.clock = ManualClock()
        self.target = FakeTarget()
        self.door = FakeDoor(self.target, now=START)
        self.ledger = Ledger()

    def planned(self, generation: int, *, weights: bytes) -> tuple[Deployment, Path]:
        source = self.seal(f"checkpoint-{generation}", weights=weights)
        checkpoint = make_checkpoint(
            id=f"ckpt-{generation}",
            state=CheckpointState.ACCEPTED,
            weights_sha256=read_manifest(source).weights_sha256,
        )
        deployment = plan(checkpoint, active=None, generation=generation, reason="best", now=START)
        assert deployment is not None
        return deployment, source

    def run(self, deployment: Deployment, source: Path, **extra_files: bytes) -> Deployment:
        return deploy(
            deployment,
            source=source,
            target=self.target,
            door=self.door,
            probe_prompt="Say yes.",
            report=self.ledger,
            clock=self.clock,
            extra_files=extra_files,
        )

    def return_to(self, deployment: Deployment) -> None:
        reactivate(deployment, target=self.target, door=self.door, probe_prompt="Say yes.")


@pytest.fixture
def empty(seal: Callable[..., Path]) -> Stage:
    return Stage(seal)


@pytest.fixture
def stage(empty: Stage) -> Stage:
    """The first release is served."""
    ended = empty.run(*empty.planned(1, weights=b"one"))
    assert ended.state is DeploymentState.ACTIVE
    empty.ledger.steps.clear()
    return empty


def served_everywhere(stage: Stage) -> str | None:
    """What `current` names, if the server answers with the same."""
    assert stage.target.current() == stage.door.health().release_id
    return stage.target.current()


def first(stage: Stage) -> Deployment:
    return next(item for item in stage.ledger.saved.values() if item.generation == 1)


def test_a_deployment_goes_step_by_step_and_ends_active(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    stage.ledger.on_step = lambda _: stage.clock.advance(2)
    ended = stage.run(deployment, source)
    assert stage.ledger.steps == ["syncing", "verified", "active"]
    assert served_everywhere(stage) == deployment.id
    assert ended == stage.ledger.saved[deployment.id]
    assert (ended.num_files, ended.release_path) == (3, f"memory/{deployment.id}")
    assert ended.num_bytes == len(b"{}" + b"[]" + b"two")
    assert (ended.activated_at is not None, ended.duration_seconds, ended.problem) == (True, 4.0, "")


def test_a_release_carries_what_belongs_to_it_beside_the_model(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    ended = stage.run(deployment, source, confidence=b"{}")
    assert ended.num_files == 4
    assert "confidence" in stage.target.verify(deployment.id).files


def test_current_moves_only_after_the_server_answered_with_the_release(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    seen: list[tuple[str | None, str | None]] = []
    real = stage.door.probe

    def probe(prompt: str, *, release_id: str) -> str:
        seen.append((stage.target.current(), stage.door.release_id))
        return real(prompt, release_id=release_id)

    stage.door.probe = probe
    stage.run(deployment, source)
    assert seen == [(first(stage).id, deployment.id)]


def test_a_server_that_is_down_fails_it_before_a_byte_is_copied(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    stage.door.is_down = True
    ended = stage.run(deployment, source)
    assert ended.state is DeploymentState.FAILED
    assert "cannot be reached" in ended.problem
    assert deployment.id not in stage.target.releases
    assert stage.target.current() == first(stage).id
    assert ended.ended_at is not None


def test_a_server_without_a_release_takes_its_first(empty: Stage) -> None:
    deployment, source = empty.planned(1, weights=b"one")
    assert empty.run(deployment, source).state is DeploymentState.ACTIVE
    assert served_everywhere(empty) == deployment.id


def damaged_source(stage: Stage, deployment: Deployment, source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"owt")


def damaged_release(stage: Stage, deployment: Deployment, source: Path) -> None:
    stage.target.damaged.add(deployment.id)


def refusing_server(stage: Stage, deployment: Deployment, source: Path) -> None:
    stage.door.refuses.add(deployment.id)


def mute_server(stage: Stage, deployment: Deployment, source: Path) -> None:
    stage.door.mute.add(deployment.id)


def full_disk(stage: Stage, deployment: Deployment, source: Path) -> None:
    real = stage.target.activate

    def activate(release_id: str, *, is_return: bool = False) -> None:
        real(release_id, is_return=is_return)
        if release_id == deployment.id:
            raise TransferFailed("the link could not be made durable")

    stage.target.activate = activate


@pytest.mark.parametrize(
    ("fault", "steps"),
    [
        (damaged_source, ["syncing", "failed"]),
        (damaged_release, ["syncing", "failed"]),
        (refusing_server, ["syncing", "verified", "failed"]),
        (mute_server, ["syncing", "verified", "failed"]),
        (full_disk, ["syncing", "verified", "failed"]),
    ],
)
def test_whatever_fails_the_release_before_is_served(
    stage: Stage, fault: Callable[[Stage, Deployment, Path], None], steps: list[str]
) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    fault(stage, deployment, source)
    ended = stage.run(deployment, source)
    assert stage.ledger.steps == steps
    assert ended.problem
    assert ended.activated_at is None
    assert served_everywhere(stage) == first(stage).id


def test_weights_that_were_not_judged_are_not_served(stage: Stage) -> None:
    deployment, _ = stage.planned(2, weights=b"two")
    ended = stage.run(deployment, stage.seal("swapped", weights=b"never judged"))
    assert ended.state is DeploymentState.FAILED
    assert "not the judged ones" in ended.problem
    assert served_everywhere(stage) == first(stage).id


def test_a_server_that_loads_other_weights_is_given_the_former_release_back(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    real = stage.door.set_active

    def set_active(release_id: str) -> Any:
        answer = real(release_id)
        return answer.changed(weights_sha256="f" * 64) if release_id == deployment.id else answer

    stage.door.set_active = set_active
    ended = stage.run(deployment, source)
    assert "The server loaded weights ffffffffffff" in ended.problem
    assert ended.problem.endswith(f"The server answers with {first(stage).id} again.")
    assert served_everywhere(stage) == first(stage).id


def test_a_release_that_loads_too_slowly_is_not_swapped_in_later(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    stage.door.slow.add(deployment.id)
    ended = stage.run(deployment, source)
    stage.door.finish_loading()
    assert ended.state is DeploymentState.FAILED
    assert served_everywhere(stage) == first(stage).id


def test_a_server_that_lost_both_releases_is_given_the_former_one_back(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    stage.door.ousts.add(deployment.id)
    ended = stage.run(deployment, source)
    assert ended.state is DeploymentState.FAILED
    assert ended.problem.endswith(f"The server answers with {first(stage).id} again.")
    assert served_everywhere(stage) == first(stage).id


def test_a_first_release_that_cannot_be_loaded_leaves_nothing_to_give_back(empty: Stage) -> None:
    deployment, source = empty.planned(1, weights=b"one")
    empty.door.ousts.add(deployment.id)
    ended = empty.run(deployment, source)
    assert "could not be loaded again" in ended.problem
    assert served_everywhere(empty) is None


def test_a_first_release_whose_probe_fails_is_told_to_stay_loaded(empty: Stage) -> None:
    deployment, source = empty.planned(1, weights=b"one")
    empty.door.mute.add(deployment.id)
    ended = empty.run(deployment, source)
    assert ended.state is DeploymentState.FAILED
    assert ended.problem.endswith(f"The server keeps {deployment.id}: it served nothing before.")
    assert empty.target.current() is None


def test_a_server_that_dies_in_the_swap_is_told_and_current_stays(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")

    def die(_prompt: str, *, release_id: str) -> str:
        stage.door.is_down = True
        raise ServerFailed("The connection was lost.")

    stage.door.probe = die
    ended = stage.run(deployment, source)
    assert "could not be restored: The inference server cannot be reached" in ended.problem
    assert stage.target.current() == first(stage).id


def test_who_lost_the_right_to_deploy_touches_nothing_more(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")

    def refuse(after: Deployment) -> None:
        if after.state is DeploymentState.VERIFIED:
            raise RuntimeError("the lease is another's")

    stage.ledger.on_step = refuse
    with pytest.raises(RuntimeError, match="the lease"):
        stage.run(deployment, source)
    assert served_everywhere(stage) == first(stage).id


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def kill_at(stage: Stage, place: str, *, after: bool) -> None:
    """Die once, before or after the call takes effect."""
    owner: Any = stage.door if hasattr(stage.door, place) else stage.target
    real = getattr(owner, place)

    def dying(*args: Any, **options: Any) -> Any:
        setattr(owner, place, real)
        if after:
            real(*args, **options)
        raise Killed

    setattr(owner, place, dying)


KILLS = [
    (place, after)
    for place in ("health", "push", "verify", "set_active", "probe", "activate")
    for after in (False, True)
]


@pytest.mark.parametrize(("place", "after"), KILLS)
def test_killed_at_any_step_current_is_complete_and_the_next_run_finishes(
    stage: Stage, place: str, after: bool
) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    kill_at(stage, place, after=after)
    with pytest.raises(Killed):
        stage.run(deployment, source)
    current = stage.target.current()
    assert current in (first(stage).id, deployment.id)
    stage.target.verify(current)
    next_deployment, next_source = stage.planned(3, weights=b"two")
    assert stage.run(next_deployment, next_source).state is DeploymentState.ACTIVE
    assert served_everywhere(stage) == next_deployment.id


@pytest.mark.parametrize("step", ["syncing", "verified", "active"])
def test_killed_while_saving_the_next_run_finishes(stage: Stage, step: str) -> None:
    deployment, source = stage.planned(2, weights=b"two")

    def kill(after: Deployment) -> None:
        if after.state == step:
            raise Killed

    stage.ledger.on_step = kill
    with pytest.raises(Killed):
        stage.run(deployment, source)
    stage.ledger.on_step = lambda _: None
    stage.target.verify(stage.target.current() or "")
    next_deployment, next_source = stage.planned(3, weights=b"two")
    assert stage.run(next_deployment, next_source).state is DeploymentState.ACTIVE
    assert served_everywhere(stage) == next_deployment.id


def test_what_a_killed_run_left_in_the_server_is_not_what_a_failed_one_returns_to(stage: Stage) -> None:
    kill_at(stage, "probe", after=False)
    with pytest.raises(Killed):
        stage.run(*stage.planned(2, weights=b"two"))
    deployment, source = stage.planned(3, weights=b"three")
    stage.door.mute.add(deployment.id)
    assert stage.run(deployment, source).state is DeploymentState.FAILED
    assert served_everywhere(stage) == first(stage).id


def test_a_clock_set_back_gives_no_negative_duration(stage: Stage) -> None:
    stage.clock.advance(-3600)
    assert stage.run(*stage.planned(2, weights=b"two")).duration_seconds == 0.0


# What deployments that died, or lost the link, left in the server.


def mended(stage: Stage) -> str | None:
    return mend(target=stage.target, door=stage.door)


@pytest.mark.parametrize(("place", "after"), KILLS)
def test_killed_at_any_step_the_server_is_mended_to_serve_what_is_current(
    stage: Stage, place: str, after: bool
) -> None:
    kill_at(stage, place, after=after)
    with pytest.raises(Killed):
        stage.run(*stage.planned(2, weights=b"two"))
    mended(stage)
    assert served_everywhere(stage) is not None
    assert mended(stage) is None


def test_a_swap_that_could_not_be_taken_back_over_a_dead_link_is_mended_later(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")

    def lose_the_link(_prompt: str, *, release_id: str) -> str:
        stage.door.is_down = True
        raise ServerFailed("The line is dead.")

    stage.door.probe = lose_the_link
    assert "could not be restored" in stage.run(deployment, source).problem
    stage.door.is_down = False
    assert stage.door.health().release_id == deployment.id
    assert mended(stage) == first(stage).id
    assert served_everywhere(stage) == first(stage).id


def test_what_is_still_loaded_for_a_dead_deployer_is_not_swapped_in_later(stage: Stage) -> None:
    deployment, source = stage.planned(2, weights=b"two")
    stage.target.push(source, release_id=deployment.id)
    stage.door.loading_release_id = deployment.id
    assert mended(stage) == first(stage).id
    assert served_everywhere(stage) == first(stage).id


def test_a_server_that_is_about_to_serve_what_is_current_is_left_alone(stage: Stage) -> None:
    stage.door.release_id, stage.door.loading_release_id = None, first(stage).id
    assert mended(stage) is None
    stage.door.loading_release_id, stage.door.is_starting = None, True
    assert mended(stage) is None


def test_where_nothing_was_ever_current_nothing_is_mended_and_nobody_asked(empty: Stage) -> None:
    empty.door.is_down = True
    assert mended(empty) is None


# Back to an earlier release.


@pytest.fixture
def replaced(stage: Stage) -> Stage:
    """The second release is served, the first superseded."""
    stage.run(*stage.planned(2, weights=b"two"))
    return stage


def superseded(stage: Stage) -> Deployment:
    return first(stage).changed(state=DeploymentState.SUPERSEDED)


def test_an_earlier_release_is_served_again(replaced: Stage) -> None:
    replaced.return_to(superseded(replaced))
    assert served_everywhere(replaced) == first(replaced).id


@pytest.mark.parametrize("state", ["active", "failed", "planned"])
def test_only_a_release_that_was_served_returns(replaced: Stage, state: str) -> None:
    before = served_everywhere(replaced)
    with pytest.raises(NotDeployable):
        replaced.return_to(first(replaced).changed(state=DeploymentState(state)))
    assert served_everywhere(replaced) == before


@pytest.mark.parametrize("fault", [damaged_release, refusing_server, mute_server, full_disk])
def test_a_return_that_fails_leaves_the_served_release(
    replaced: Stage, fault: Callable[[Stage, Deployment, Path], None]
) -> None:
    before = served_everywhere(replaced)
    fault(replaced, superseded(replaced), Path())
    with pytest.raises(DeployError):
        replaced.return_to(superseded(replaced))
    assert served_everywhere(replaced) == before


def test_a_failed_return_keeps_the_kind_of_error_and_says_what_is_served(replaced: Stage) -> None:
    before = served_everywhere(replaced)
    replaced.door.mute.add(first(replaced).id)
    with pytest.raises(ServerFailed, match=f"The server answers with {before} again"):
        replaced.return_to(superseded(replaced))


def test_a_return_needs_the_server(replaced: Stage) -> None:
    replaced.door.is_down = True
    before = replaced.target.current()
    with pytest.raises(ServerFailed, match="cannot be reached"):
        replaced.return_to(superseded(replaced))
    assert replaced.target.current() == before


def test_a_return_killed_midway_is_finished_by_the_next(replaced: Stage) -> None:
    kill_at(replaced, "activate", after=False)
    with pytest.raises(Killed):
        replaced.return_to(superseded(replaced))
    replaced.return_to(superseded(replaced))
    assert served_everywhere(replaced) == first(replaced).id
