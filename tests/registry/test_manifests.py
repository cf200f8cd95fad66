import json
import os
from pathlib import Path
from typing import Any

import pytest

from registry.errors import ManifestError
from registry.files import sha256_file, sha256_text
from registry.manifests import (
    CHECKSUM,
    MANIFEST_NAME,
    Manifest,
    list_files,
    read_manifest,
    verify,
    weights_sha256,
    write_manifest,
)
from registry.testing import START

CONTENT = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "training_state.safetensors": b"moments",
    "training_state.json": b"{}",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An unsealed checkpoint."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    for name, content in CONTENT.items():
        (path / name).write_bytes(content)
    return path


def sealed(directory: Path, **changes: Any) -> Manifest:
    files = list_files(directory)
    fields = {
        "files": files,
        "weights_sha256": weights_sha256(files),
        "code_version": "test",
        "created_at": START,
    }
    manifest = Manifest.model_validate(fields | changes)
    write_manifest(directory, manifest=manifest)
    return manifest


def test_a_sealed_directory_verifies_and_says_what_was_written(directory: Path) -> None:
    manifest = sealed(directory, step=7, train_loss=0.5, job_id="job-a")
    assert verify(directory) == read_manifest(directory) == manifest
    assert set(manifest.files) == set(CONTENT)


def test_the_manifest_lists_every_file_but_itself(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / MANIFEST_NAME).write_text("not the manifest")
    (directory / MANIFEST_NAME).write_text("{}")
    assert set(list_files(directory)) == {*CONTENT, f"sub/{MANIFEST_NAME}"}


def test_training_state_is_told_apart_also_in_a_directory_of_its_own(directory: Path) -> None:
    (directory / "training_state").mkdir()
    (directory / "training_state" / "moments.safetensors").write_bytes(b"m")
    states = {name for name, entry in list_files(directory).items() if entry.is_state}
    assert states == {
        "training_state.safetensors",
        "training_state.json",
        "training_state/moments.safetensors",
    }


def test_the_weights_name_the_model_and_training_state_does_not(directory: Path) -> None:
    before = weights_sha256(list_files(directory))
    assert before == sha256_file(directory / "model.safetensors")
    (directory / "training_state.safetensors").write_bytes(b"other")
    (directory / "config.json").write_bytes(b"{ }")
    assert weights_sha256(list_files(directory)) == before
    (directory / "model.safetensors").write_bytes(b"weightz")
    assert weights_sha256(list_files(directory)) != before


def test_sharded_weights_are_named_by_their_names_and_hashes(directory: Path) -> None:
    (directory / "model-2.safetensors").write_bytes(b"more")
    hashes = {name: sha256_file(directory / name) for name in ("model-2.safetensors", "model.safetensors")}
    assert weights_sha256(list_files(directory)) == sha256_text(json.dumps(hashes, sort_keys=True))


def test_a_directory_without_safetensors_has_no_identity(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ManifestError, match=r"no \.safetensors weights"):
        weights_sha256(list_files(directory))


@pytest.mark.parametrize("target", ["config.json", "/etc/hostname", "nowhere"])
def test_a_symbolic_link_is_no_file_of_a_checkpoint(directory: Path, target: str) -> None:
    (directory / "link.json").symlink_to(target)
    with pytest.raises(ManifestError, match=r"link\.json is a symbolic link"):
        list_files(directory)


def test_a_directory_without_a_manifest_is_no_checkpoint(directory: Path, tmp_path: Path) -> None:
    for path in (directory, tmp_path / "nowhere"):
        with pytest.raises(ManifestError, match=r"no manifest\.json, so it is not a checkpoint"):
            verify(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_manifest_is_no_manifest(directory: Path, content: bytes) -> None:
    (directory / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(directory)


def test_a_manifest_cannot_say_that_the_loss_is_nan(directory: Path) -> None:
    sealed(directory, train_loss=0.5)
    path = directory / MANIFEST_NAME
    path.write_text(path.read_text().replace("0.5", "NaN"))
    with pytest.raises(ManifestError, match="train_loss"):
        read_manifest(directory)


TOLD: dict[str, Any] = {
    "step": 7,
    "num_steps": 9,
    "train_loss": 0.5,
    "job_id": "job-a",
    "parent_checkpoint_id": "checkpoint-a",
    "dataset_id": "dataset-a",
    "config": {"profile": {"name": "plain_sft"}, "notes": ["ä", 1e-05, None, True]},
}


def test_any_flipped_bit_of_a_manifest_is_found(directory: Path) -> None:
    manifest = sealed(directory, **TOLD)
    path = directory / MANIFEST_NAME
    content = path.read_bytes()
    for number in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[number // 8] ^= 1 << number % 8
        path.write_bytes(flipped)
        try:
            found = read_manifest(directory)
        except ManifestError:
            continue
        # What is left of 1e-05 with a capital E is the same number.
        assert found == manifest, flipped[number // 8 - 20 :][:40]
        assert flipped.lower() == content.lower()


@pytest.mark.parametrize("name", [*TOLD, "code_version", "is_final", "created_at", "weights_sha256"])
def test_a_field_that_was_changed_or_taken_away_is_found(directory: Path, name: str) -> None:
    other = {"step": 8, "num_steps": 8, "train_loss": 0.25, "is_final": True, "config": {"profile": None}}
    sealed(directory, **TOLD)
    path = directory / MANIFEST_NAME
    value = json.loads(path.read_text())
    changed = "2020-01-01T00:00:00Z" if name == "created_at" else other.get(name, "other")
    for damaged in (value | {name: changed}, {key: kept for key, kept in value.items() if key != name}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(ManifestError, match=r"says of itself|cannot be read"):
            verify(directory)


def test_the_layout_of_a_manifest_may_change(directory: Path) -> None:
    manifest = sealed(directory, **TOLD)
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert verify(directory) == manifest


def test_a_manifest_from_before_checksums_is_read_as_it_stands(directory: Path) -> None:
    manifest = sealed(directory, **TOLD)
    path = directory / MANIFEST_NAME
    value = json.loads(path.read_text())
    del value[CHECKSUM]
    path.write_text(json.dumps(value))
    assert verify(directory) == manifest


def test_a_manifest_that_is_a_directory_is_no_manifest(directory: Path) -> None:
    (directory / MANIFEST_NAME).mkdir()
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(directory)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../b", ".", "", "a//b", "./a", "manifest.json"]
)
def test_a_manifest_names_only_files_inside(directory: Path, name: str) -> None:
    sealed(directory)
    path = directory / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    del manifest[CHECKSUM]
    manifest["files"][name] = manifest["files"]["config.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="names no file inside"):
        verify(directory)


def test_a_flipped_bit_is_found(directory: Path) -> None:
    sealed(directory)
    (directory / "model.safetensors").write_bytes(b"weightt")
    with pytest.raises(ManifestError, match=r"model\.safetensors does not have the sha256"):
        verify(directory)


def test_a_truncated_file_is_found_by_its_size(directory: Path) -> None:
    sealed(directory)
    (directory / "model.safetensors").write_bytes(b"weigh")
    with pytest.raises(ManifestError, match="has 5 bytes; the manifest says 7"):
        verify(directory)


def test_a_missing_file_is_found(directory: Path) -> None:
    sealed(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ManifestError, match=r"config\.json is missing"):
        verify(directory)


def test_a_release_without_training_state_verifies_only_if_state_is_not_asked_for(directory: Path) -> None:
    sealed(directory)
    (directory / "training_state.safetensors").unlink()
    assert verify(directory, with_state=False).files["training_state.safetensors"].is_state
    with pytest.raises(ManifestError, match="training_state"):
        verify(directory)


def test_a_file_that_became_a_link_out_of_the_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    sealed(directory)
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENT["model.safetensors"])
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to(outside)
    with pytest.raises(ManifestError, match="lies outside"):
        verify(directory)


def test_a_link_to_itself_is_damage_and_no_crash(directory: Path) -> None:
    sealed(directory)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(ManifestError, match=r"model\.safetensors"):
        verify(directory)


def test_a_file_that_cannot_be_read_is_damage_and_no_crash(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    sealed(directory)
    monkeypatch.setattr("registry.manifests.sha256_file", refuse)
    with pytest.raises(ManifestError, match="cannot be read"):
        verify(directory)


def test_the_manifest_is_written_after_every_file_is_durable(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = sealed(directory)
    (directory / MANIFEST_NAME).unlink()
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if not name.startswith(f".{MANIFEST_NAME}"):
            assert (directory / MANIFEST_NAME).exists() == ("sealed" in synced)
        else:
            name = "sealed"
        synced.append(name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_manifest(directory, manifest=manifest)
    assert set(CONTENT) < set(synced[: synced.index("sealed")])
