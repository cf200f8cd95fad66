"""What only a host behind a gate can show: fencing, resuming, the cache, and a line that is cut."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from deploy.errors import (
    DeployError,
    HostUnreachable,
    NotDeployable,
    ServerDown,
    ServerFailed,
    TransferFailed,
)
from deploy.gate import answer_line
from deploy.remote import Candidates, GateDoor, RemoteTarget, hello
from deploy.testing import CopyingCarrier
from deploy.wire import Begin, Parcel
from registry.files import sha256_file
from registry.manifests import CHECKSUM, MANIFEST_NAME, FileEntry, read_manifest
from registry.testing import START
from tests.deploy.far import PLENTY, FarHost

ONE, TWO = "r000001-aaaaaaaa", "r000002-bbbbbbbb"


def target(far: FarHost, *, fence: int = 1) -> RemoteTarget:
    return RemoteTarget(far.gateway(fence=fence), carrier=far.carrier)


def candidates(far: FarHost) -> Candidates:
    return Candidates(far.gateway(), carrier=far.carrier)


def test_a_host_says_what_a_doctor_wants_to_know(far: FarHost) -> None:
    answer = hello(far.gateway())
    assert (answer.version, answer.time, answer.num_releases, answer.current) == ("1", START, 0, None)


@pytest.mark.parametrize("missing", ["rsync", "rrsync"])
def test_a_host_that_cannot_receive_by_rsync_says_so_to_doctor_and_deployer_alike(
    far: FarHost, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr("deploy.transfer.shutil.which", lambda name: None if name == missing else f"/{name}")
    assert not hello(far.gateway()).has_rsync
    entry = FileEntry(sha256="0" * 64, num_bytes=1)
    parcel = Parcel(kind="suite", name="0" * 64, files={"suite.jsonl": entry}, manifest=None)
    slot = far.gateway().ask(Begin(parcel=parcel))
    assert isinstance(slot, dict)
    assert slot["has_rsync"] is False


def test_a_deployer_that_was_frozen_changes_nothing_after_another_took_over(far: FarHost, seal) -> None:
    frozen, taking_over = target(far, fence=3), target(far, fence=4)
    frozen.push(seal(), release_id=ONE)
    frozen.activate(ONE)
    taking_over.push(seal("two"), release_id=TWO)
    for call in (
        lambda: frozen.activate(TWO),
        lambda: frozen.push(seal("three"), release_id="r000003-cccccccc"),
        lambda: frozen.prune(keep=0, protect=[]),
        lambda: GateDoor(far.gateway(fence=3)).set_active(ONE),
    ):
        with pytest.raises(NotDeployable, match="Another deployer took over on far"):
            call()
    assert frozen.current() == ONE


def test_files_that_vanish_under_a_transfer_are_the_other_deployers_doing(far: FarHost, seal) -> None:
    newer, source = target(far, fence=4), seal("two")

    class Displaced(CopyingCarrier):
        def carry(self, *_: object, **__: object) -> None:
            newer.push(source, release_id=TWO)
            raise TransferFailed("rsync ended with 23: some files vanished.")

    older = RemoteTarget(far.gateway(fence=3), carrier=Displaced())
    with pytest.raises(NotDeployable, match="Another deployer took over on far"):
        older.push(seal(), release_id=ONE)


@pytest.mark.parametrize("free_bytes", [PLENTY, 0])
def test_a_transfer_that_failed_by_itself_says_why(far: FarHost, seal, free_bytes: int) -> None:
    class Broken(CopyingCarrier):
        def carry(self, *_: object, **__: object) -> None:
            far.free_bytes = free_bytes
            raise TransferFailed("rsync ended with 11: no space left on device.")

    with pytest.raises(TransferFailed, match="rsync ended with 11"):
        RemoteTarget(far.gateway(), carrier=Broken()).push(seal(), release_id=ONE)


def test_too_little_room_names_host_path_need_and_what_is_free(far: FarHost, seal) -> None:
    far.free_bytes = 3
    with pytest.raises(TransferFailed, match=r"far:.*/incoming has 3 bytes free; release .* needs \d+ more"):
        target(far).push(seal(), release_id=ONE)
    assert far.carrier.num_carried == 0


def test_what_arrives_changed_is_sent_again_once(far: FarHost, seal) -> None:
    far.carrier.spoils = ["model.safetensors"]
    target(far).push(seal(), release_id=ONE)
    assert far.carrier.num_carried == 2
    far.carrier.spoils = ["model.safetensors", "model.safetensors"]
    with pytest.raises(TransferFailed, match=r"model\.safetensors differs"):
        target(far).push(seal("two"), release_id=TWO)
    assert not (far.config.releases_dir / TWO).exists()


def test_a_file_too_many_in_what_arrived_is_not_released(far: FarHost, seal) -> None:
    source = seal()
    far.config.incoming_dir.mkdir(parents=True)
    planted = far.config.incoming_dir / f"release-{read_manifest(source).weights_sha256[:16]}"
    planted.mkdir()
    (planted / "extra.py").write_text("evil")
    (planted / "config.json").symlink_to("/etc/passwd")
    target(far).push(source, release_id=ONE)
    assert "extra.py" not in {path.name for path in (far.config.releases_dir / ONE).iterdir()}
    assert not (far.config.releases_dir / ONE / "config.json").is_symlink()


@pytest.mark.parametrize("damage", ["changed", "extra"])
def test_what_was_proved_in_a_session_is_read_again_once_it_was_touched(
    far: FarHost, seal, damage: str
) -> None:
    remote = target(far)
    path = Path(remote.push(seal(), release_id=ONE))
    remote.verify(ONE)
    weights = path / ("model.safetensors" if damage == "changed" else "more.safetensors")
    before = (path / "model.safetensors").stat()
    weights.unlink(missing_ok=True)
    weights.write_bytes(b"weightz")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TransferFailed, match="is damaged"):
        remote.verify(ONE)


def test_a_lost_answer_is_asked_for_again(far: FarHost, seal) -> None:
    gateway = far.gateway()
    remote = RemoteTarget(gateway, carrier=far.carrier)
    remote.push(seal(), release_id=ONE)
    far.lines[-1].is_cut = True
    remote.activate(ONE)
    assert remote.current() == ONE
    assert len(far.lines) == 2


def test_a_dead_host_is_named_after_a_few_tries(far: FarHost) -> None:
    def connect(_: object) -> object:
        raise HostUnreachable("tandem@far:22 cannot be reached: no route.")

    gateway = far.gateway()
    gateway._connect = connect  # type: ignore[assignment]
    with pytest.raises(HostUnreachable, match="no route"):
        RemoteTarget(gateway, carrier=far.carrier).current()
    with pytest.raises(ServerFailed, match="no route"):
        GateDoor(gateway).health()


def test_a_server_that_is_down_behind_a_gate_is_told_from_a_gate_that_cannot_be_reached(far: FarHost) -> None:
    far.door.is_down = True
    with pytest.raises(ServerDown):
        GateDoor(far.gateway()).health()
    gateway = far.gateway()

    def connect(_: object) -> object:
        raise HostUnreachable("no route.")

    gateway._connect = connect  # type: ignore[assignment]
    with pytest.raises(ServerFailed) as caught:
        GateDoor(gateway).health()
    assert not isinstance(caught.value, ServerDown)


def test_what_the_server_loads_is_never_pruned(far: FarHost, seal) -> None:
    remote = target(far)
    source = seal()
    for name in (ONE, TWO, "r000003-cccccccc"):
        remote.push(source, release_id=name)
    remote.activate("r000003-cccccccc")
    far.door.loading_release_id = ONE
    assert remote.prune(keep=1, protect=[]) == [TWO]
    far.door.is_down = True
    assert remote.prune(keep=0, protect=[]) == []


def test_a_line_that_is_no_request_is_answered(far: FarHost) -> None:
    for line in ("", "{}", "null", '{"request": {"verb": "rm -rf"}}', '{"request": {"verb": "verify"}}'):
        assert answer_line(far.gatekeeper(), line).error == "DeployError"


@pytest.mark.parametrize("name", ["../x", "a b", "--rsync-path=touch x", ".hidden", "a\nb", "a//b", "/etc/x"])
def test_a_file_name_that_rsync_could_misread_is_refused(far: FarHost, seal, name: str) -> None:
    source: Path = seal()
    value = json.loads((source / MANIFEST_NAME).read_text())
    del value[CHECKSUM]
    value["files"][name] = value["files"].pop("tokenizer/vocab.json")
    (source / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(TransferFailed):
        target(far).push(source, release_id=ONE)
    assert far.carrier.num_carried == 0


def test_a_candidate_is_sent_once_and_without_training_state(far: FarHost, seal) -> None:
    source: Path = seal()
    sha256 = read_manifest(source).weights_sha256
    path = Path(candidates(far).send_model(source, sha256=sha256))
    assert candidates(far).send_model(source, sha256=sha256) == str(path)
    assert far.carrier.num_carried == 1
    assert path == far.config.cache_dir / sha256
    assert set(read_manifest(path).files) == {"config.json", "tokenizer/vocab.json", "model.safetensors"}


def test_a_candidate_that_rotted_in_the_cache_comes_again(far: FarHost, seal) -> None:
    source: Path = seal()
    sha256 = read_manifest(source).weights_sha256
    path = Path(candidates(far).send_model(source, sha256=sha256))
    weights = path / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"weightz")
    candidates(far).send_model(source, sha256=sha256)
    assert weights.read_bytes() == b"weights"
    assert far.carrier.num_carried == 2


def test_a_suite_travels_by_content(far: FarHost, tmp_path: Path) -> None:
    suite = tmp_path / "any name.jsonl"
    suite.write_text("{}\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = Path(candidates(far).send_suite(suite, sha256=sha256_file(suite), scratch_dir=scratch))
    assert (path / "suite.jsonl").read_text() == "{}\n"
    with pytest.raises(TransferFailed, match="has sha256"):
        candidates(far).send_suite(suite, sha256="0" * 64, scratch_dir=scratch)


def test_a_candidate_makes_room_for_itself_but_never_at_the_cost_of_one_in_use(tmp_path: Path, seal) -> None:
    first, second, third = (seal(name, weights=name.encode() * 4000) for name in ("a", "b", "c"))
    size = sum(e.num_bytes for e in read_manifest(first).files.values() if not e.is_state)
    far = FarHost(tmp_path / "small", cache_bytes=3 * size)
    hashes = [read_manifest(source).weights_sha256 for source in (first, second, third)]
    candidates(far).send_model(first, sha256=hashes[0])
    candidates(far).send_model(second, sha256=hashes[1])
    lock = far.config.cache_dir / f"{hashes[0]}.lock"
    with lock.open("w") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        candidates(far).send_model(third, sha256=hashes[2])
    kept = {path.name for path in far.config.cache_dir.iterdir() if path.is_dir()}
    assert kept == {hashes[0], hashes[2]}


def test_a_cache_full_of_what_is_in_use_says_so(tmp_path: Path, seal) -> None:
    far = FarHost(tmp_path / "tiny", cache_bytes=10)
    source = seal()
    with pytest.raises(DeployError, match=r"may hold 10 bytes; 0 are in use and \d+ more do not fit"):
        candidates(far).send_model(source, sha256=read_manifest(source).weights_sha256)
