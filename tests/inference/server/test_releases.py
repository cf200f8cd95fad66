from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from inference.errors import ReleaseError
from inference.server.releases import current_release_id, list_releases, load_release, release_directory
from inference.testing import seal


@pytest.mark.parametrize(
    "release_id",
    ["", "..", "../release-1", "/etc", "release-1/", "a/b", "current", ".hidden", "x" * 101, "release-1\n"],
)
def test_what_is_not_a_release_id_never_becomes_a_path(releases_dir: Path, release_id: str) -> None:
    with pytest.raises(ReleaseError, match="is not a release id"):
        release_directory(releases_dir, release_id)


def test_a_link_among_the_releases_is_not_followed(releases_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (releases_dir / "sly").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReleaseError, match="no release 'sly'"):
        release_directory(releases_dir, "sly")


def test_current_names_the_release_it_links_to(releases_dir: Path) -> None:
    assert current_release_id(releases_dir) == "release-1"


def test_an_absolute_link_within_the_directory_counts(releases_dir: Path) -> None:
    (releases_dir / "current").unlink()
    (releases_dir / "current").symlink_to(releases_dir / "release-2")
    assert current_release_id(releases_dir) == "release-2"


def test_without_current_or_directory_there_is_none(releases_dir: Path, tmp_path: Path) -> None:
    (releases_dir / "current").unlink()
    assert current_release_id(releases_dir) is None
    assert current_release_id(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("target", "message"),
    [("gone", "no release 'gone'"), ("../x", "leads out of"), ("..", "is not a release id")],
)
def test_a_broken_or_straying_current_is_an_error(releases_dir: Path, target: str, message: str) -> None:
    (releases_dir / "current").unlink()
    (releases_dir / "current").symlink_to(target)
    with pytest.raises(ReleaseError, match=message):
        current_release_id(releases_dir)


def test_a_directory_called_current_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(ReleaseError, match="not a symbolic link"):
        current_release_id(tmp_path)


def test_releases_are_listed_with_what_is_wrong_with_them(releases_dir: Path) -> None:
    (releases_dir / "release-2" / "manifest.json").unlink()
    first, second = list_releases(releases_dir, active_id="release-1")
    assert (first.release_id, first.is_active, first.problem) == ("release-1", True, "")
    assert first.weights_sha256 is not None
    assert (second.weights_sha256, second.is_active) == (None, False)
    assert "no manifest.json" in second.problem


def test_a_release_with_a_changed_file_is_not_loaded(releases_dir: Path) -> None:
    (releases_dir / "release-2" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ReleaseError, match="Release 'release-2' cannot be served: .* the manifest says"):
        load_release(releases_dir / "release-2", device="cpu", num_threads=1)


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "hold NaN or infinity"), (3e38, "logits are not finite")]
)
def test_a_release_that_fails_its_probe_is_not_served(releases_dir: Path, value: float, message: str) -> None:
    directory = releases_dir / "release-2"
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"][:] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReleaseError, match=message):
        load_release(seal(directory), device="cpu", num_threads=1)
