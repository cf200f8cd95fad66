"""The contract of every release target, then what only a directory can show."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import DeployError, NotDeployable, TransferFailed
from deploy.remote import RemoteTarget
from deploy.target import LocalTarget, ReleaseTarget, prunable
from deploy.testing import FakeTarget
from registry.manifests import MANIFEST_NAME, read_manifest
from tests.deploy.far import FarHost

ONE, TWO, THREE = "r000001-aaaaaaaa", "r000002-bbbbbbbb", "r000003-cccccccc"


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    return tmp_path / "releases"


@pytest.fixture(params=["local", "fake", "remote"])
def target(request: pytest.FixtureRequest, releases: Path, far: FarHost) -> ReleaseTarget:
    if request.param == "remote":
        return RemoteTarget(far.gateway(), carrier=far.carrier)
    return LocalTarget(releases) if request.param == "local" else FakeTarget()


@pytest.fixture
def local(releases: Path) -> LocalTarget:
    return LocalTarget(releases)


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


# Contract.


def test_nothing_is_current_in_a_place_without_releases(target: ReleaseTarget) -> None:
    assert target.current() is None
    assert target.prune(keep=1, protect=[]) == []


def test_a_pushed_release_carries_the_model_and_no_training_state(target: ReleaseTarget, seal) -> None:
    path = target.push(seal(), release_id=ONE)
    manifest = target.verify(ONE)
    assert path.endswith(ONE)
    assert set(manifest.files) == {"config.json", "tokenizer/vocab.json", "model.safetensors"}
    assert manifest.weights_sha256 == read_manifest(seal("other")).weights_sha256


def test_a_file_that_the_checkpoint_has_not_is_in_the_releases_manifest(target: ReleaseTarget, seal) -> None:
    target.push(seal(), release_id=ONE, extra_files={"confidence.json": b"{}\n"})
    entry = target.verify(ONE).files["confidence.json"]
    assert (entry.sha256, entry.num_bytes) == (hashlib.sha256(b"{}\n").hexdigest(), 3)


def test_a_push_makes_nothing_current(target: ReleaseTarget, seal) -> None:
    target.push(seal(), release_id=ONE)
    assert target.current() is None


def test_pushing_again_keeps_the_release(target: ReleaseTarget, seal) -> None:
    source = seal()
    first = target.push(source, release_id=ONE)
    target.activate(ONE)
    assert target.push(source, release_id=ONE) == first
    assert target.current() == ONE
    target.verify(ONE)


def test_a_release_is_never_written_over_with_other_weights(target: ReleaseTarget, seal) -> None:
    target.push(seal("a", weights=b"a"), release_id=ONE)
    before = target.verify(ONE)
    with pytest.raises(TransferFailed, match="exists with other weights"):
        target.push(seal("b", weights=b"b"), release_id=ONE)
    assert target.verify(ONE) == before


def test_the_newest_activation_is_current(target: ReleaseTarget, seal) -> None:
    source = seal()
    for name in (ONE, TWO):
        target.push(source, release_id=name)
        target.activate(name)
    assert target.current() == TWO


def test_an_older_release_becomes_current_as_a_return_only(target: ReleaseTarget, seal) -> None:
    source = seal()
    for name in (ONE, TWO):
        target.push(source, release_id=name)
    target.activate(TWO)
    with pytest.raises(NotDeployable, match=f"{ONE} is older than {TWO}"):
        target.activate(ONE)
    assert target.current() == TWO
    target.activate(ONE, is_return=True)
    assert target.current() == ONE


def test_a_release_that_is_not_there_is_neither_verified_nor_made_current(
    target: ReleaseTarget, seal
) -> None:
    target.push(seal(), release_id=ONE)
    target.activate(ONE)
    with pytest.raises(TransferFailed):
        target.verify(TWO)
    with pytest.raises(NotDeployable, match=f"There is no release {TWO}"):
        target.activate(TWO)
    assert target.current() == ONE


@pytest.mark.parametrize(
    "bad", ["", "current", "..", "../x", "a/b", "/etc", ".partial-x", "r1\n", "-rf", "a" * 101]
)
def test_a_name_that_is_no_release_id_is_refused(target: ReleaseTarget, seal, bad: str) -> None:
    source = seal()
    calls: list[Callable[[], object]] = [
        lambda: target.push(source, release_id=bad),
        lambda: target.verify(bad),
        lambda: target.activate(bad),
    ]
    for call in calls:
        with pytest.raises(NotDeployable, match="is no release id"):
            call()


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "missing", "no manifest", "wrong identity", "no source"]
)
def test_a_damaged_checkpoint_does_not_become_a_release(target: ReleaseTarget, seal, damage: str) -> None:
    source: Path = seal()
    weights, manifest = source / "model.safetensors", source / MANIFEST_NAME
    if damage == "flipped":
        weights.write_bytes(b"weightz")
    elif damage == "truncated":
        weights.write_bytes(b"weigh")
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "wrong identity":
        identity = read_manifest(source).weights_sha256
        text = manifest.read_text().replace(f'"weights_sha256": "{identity}"', '"weights_sha256": "0"')
        manifest.write_text(text)
    else:
        shutil.rmtree(source)
    with pytest.raises(TransferFailed):
        target.push(source, release_id=ONE)
    with pytest.raises(TransferFailed):
        target.verify(ONE)
    assert target.current() is None


def test_a_checkpoint_of_training_state_alone_does_not_become_a_release(target: ReleaseTarget, seal) -> None:
    source: Path = seal()
    manifest = read_manifest(source)
    state = {name: entry for name, entry in manifest.files.items() if entry.is_state}
    (source / MANIFEST_NAME).write_text(manifest.changed(files=state).model_dump_json())
    with pytest.raises(TransferFailed, match=r"no \.safetensors weights"):
        target.push(source, release_id=ONE)


def test_old_releases_go_but_never_a_protected_or_the_current_one(target: ReleaseTarget, seal) -> None:
    source = seal()
    every = [f"r{number:06d}-aaaaaaaa" for number in range(1, 8)]
    for name in every:
        target.push(source, release_id=name)
    target.activate(every[0])
    assert target.prune(keep=2, protect=[every[2]]) == [every[1], every[3], every[4]]
    for name in (every[0], every[2], every[5], every[6]):
        target.verify(name)
    with pytest.raises(TransferFailed):
        target.verify(every[1])
    assert target.current() == every[0]
    assert target.prune(keep=2, protect=[every[2]]) == []


# Which to remove.


def test_generations_are_numbers_not_text() -> None:
    found = ["r999999-aaaaaaaa", "r1000000-aaaaaaaa", "r000900-aaaaaaaa", "r1000001-aaaaaaaa"]
    assert prunable(found, keep=2, protect=[]) == ["r000900-aaaaaaaa", "r999999-aaaaaaaa"]


def test_what_tandem_did_not_make_is_never_removed() -> None:
    assert prunable(["readme", "r000001", "release-1", "r000001-aaaaaaaa-mine"], keep=0, protect=[]) == []


def test_keeping_none_still_keeps_what_is_protected() -> None:
    assert prunable([ONE, TWO, THREE], keep=0, protect=[TWO, None]) == [ONE, THREE]


# A directory.


def test_a_release_on_disk_is_whole_and_read_only(local: LocalTarget, releases: Path, seal) -> None:
    local.push(seal(), release_id=ONE)
    assert names(releases / ONE) == {
        "config.json",
        "tokenizer/vocab.json",
        "model.safetensors",
        MANIFEST_NAME,
    }
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (releases / ONE).rglob("*") if path.is_file()}
    assert modes == {0o444}
    assert [path.name for path in releases.iterdir()] == [ONE]


def test_an_extra_file_lies_beside_the_weights_and_is_held_to_its_content(
    local: LocalTarget, releases: Path, seal
) -> None:
    local.push(seal(), release_id=ONE, extra_files={"confidence.json": b"{}\n"})
    path = releases / ONE / "confidence.json"
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"{}\n", 0o444)
    path.chmod(0o644)
    path.write_bytes(b"[]\n")
    with pytest.raises(TransferFailed, match="confidence.json"):
        local.verify(ONE)


def test_current_is_a_relative_link_so_that_the_directory_may_be_mounted_elsewhere(
    local: LocalTarget, releases: Path, seal, tmp_path: Path
) -> None:
    local.push(seal(), release_id=ONE)
    local.activate(ONE)
    assert (releases / "current").readlink() == Path(ONE)
    moved = releases.rename(tmp_path / "elsewhere")
    assert LocalTarget(moved).current() == ONE


@pytest.mark.parametrize("link", ["nowhere", "../outside", "../releases/../outside"])
def test_a_link_that_names_no_release_here_is_no_current_one(
    local: LocalTarget, releases: Path, tmp_path: Path, link: str
) -> None:
    releases.mkdir()
    (tmp_path / "outside").mkdir()
    (releases / "current").symlink_to(link)
    assert local.current() is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "extra", "extra below", "link"])
def test_damage_on_the_far_side_is_found(local: LocalTarget, releases: Path, seal, damage: str) -> None:
    local.push(seal(), release_id=ONE)
    weights = releases / ONE / "model.safetensors"
    weights.chmod(0o644)
    if damage == "flipped":
        weights.write_bytes(b"weightz")
    elif damage == "truncated":
        weights.write_bytes(b"")
    elif damage == "missing":
        weights.unlink()
    elif damage == "extra":
        (releases / ONE / "pytorch_model.bin").write_bytes(b"pickle")
    elif damage == "extra below":
        (releases / ONE / "tokenizer" / "custom.py").write_text("")
    else:
        (releases / ONE / "model-2.safetensors").symlink_to("nowhere")
    with pytest.raises(TransferFailed, match=f"Release {ONE} is damaged"):
        local.verify(ONE)
    with pytest.raises(TransferFailed, match="is damaged"):
        local.push(seal("again"), release_id=ONE)


def test_too_little_space_names_path_need_and_free_and_copies_nothing(releases: Path, seal) -> None:
    tight = LocalTarget(releases, measure_free=lambda _: 10)
    with pytest.raises(
        TransferFailed, match=rf"^{releases} has 10 bytes free; the release needs 12\. Make space"
    ):
        tight.push(seal(), release_id=ONE)
    assert list(releases.iterdir()) == []


def test_space_is_measured_for_the_model_alone_and_after_leftovers_are_gone(releases: Path, seal) -> None:
    leftover = releases / ".partial-r000009-aaaaaaaa"
    leftover.mkdir(parents=True)
    seen: list[bool] = []

    def measure(_: Path) -> int:
        seen.append(leftover.exists())
        return 12

    LocalTarget(releases, measure_free=measure).push(seal(), release_id=ONE)
    assert seen == [False]


def test_a_full_disk_leaves_no_partial_release(
    local: LocalTarget, releases: Path, seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(TransferFailed, match="No space left"):
        local.push(seal(), release_id=ONE)
    assert list(releases.iterdir()) == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize(
    "place",
    ["deploy.target.write_manifest", "deploy.target._verified", "pathlib.Path.rename", "shutil.copyfile"],
)
def test_a_push_killed_anywhere_is_finished_by_the_next(
    local: LocalTarget, releases: Path, seal, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def kill(*_: object, **__: object) -> None:
        raise Killed

    source = seal()
    with monkeypatch.context() as patch:
        patch.setattr(place, kill)
        with pytest.raises(Killed):
            local.push(source, release_id=ONE)
    assert not (releases / ONE).exists()
    assert [path.name for path in releases.iterdir()] == [f".partial-{ONE}"]
    local.push(source, release_id=TWO)
    local.push(source, release_id=ONE)
    assert {path.name for path in releases.iterdir()} == {ONE, TWO}
    local.verify(ONE)


def test_an_activation_killed_before_its_rename_changes_nothing(
    local: LocalTarget, releases: Path, seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise Killed

    for name in (ONE, TWO):
        local.push(seal(name), release_id=name)
    local.activate(ONE)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            local.activate(TWO)
    assert local.current() == ONE
    assert len(list(releases.iterdir())) == 4
    local.push(seal(THREE), release_id=THREE)
    assert {path.name for path in releases.iterdir()} == {ONE, TWO, THREE, "current"}
    local.activate(TWO)
    assert local.current() == TWO


def test_a_removal_killed_halfway_leaves_no_half_release(
    local: LocalTarget, releases: Path, seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(path: Path) -> None:
        (path / "config.json").unlink()
        raise Killed

    for name in (ONE, TWO):
        local.push(seal(name), release_id=name)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(Killed):
            local.prune(keep=1, protect=[])
    assert not (releases / ONE).exists()
    local.push(seal(THREE), release_id=THREE)
    assert {path.name for path in releases.iterdir()} == {TWO, THREE}


def test_a_current_that_is_a_directory_is_an_error_with_its_name(
    local: LocalTarget, releases: Path, seal
) -> None:
    local.push(seal(), release_id=ONE)
    (releases / "current" / "mine").mkdir(parents=True)
    with pytest.raises(TransferFailed, match=r"current could not be pointed at"):
        local.activate(ONE)
    assert (releases / "current" / "mine").is_dir()


def test_a_releases_directory_that_cannot_be_made_is_a_failed_transfer(tmp_path: Path, seal) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TransferFailed, match="Not a directory"):
        LocalTarget(tmp_path / "file" / "releases").push(seal(), release_id=ONE)


def test_a_release_that_cannot_be_removed_is_an_error(
    local: LocalTarget, seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in (ONE, TWO):
        local.push(seal(name), release_id=name)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(DeployError, match="could not be removed: .*Permission denied"):
        local.prune(keep=1, protect=[])


def test_names_are_made_durable_when_they_change(
    local: LocalTarget, releases: Path, seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    local.push(seal(), release_id=ONE)
    assert synced[-1] == releases.name
    assert {"model.safetensors", "config.json", "vocab.json"} < set(synced)
    synced.clear()
    local.activate(ONE)
    assert synced == [releases.name]
