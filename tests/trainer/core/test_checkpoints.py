"""Checkpoints: whole or absent, and a damaged one is passed over."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from registry.files import write_json
from registry.manifests import list_files, read_manifest, verify, write_manifest
from trainer.core import checkpoints
from trainer.core.checkpoints import (
    Checkpoint,
    TrainingState,
    checkpoint_steps,
    latest_valid,
    load_tensors,
    prepare_directory,
    save_checkpoint,
)
from trainer.errors import ConfigError, DiskFull, TrainerError
from trainer.testing import NOON

CPU = torch.device("cpu")
Save = Callable[..., Checkpoint]


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        run_digest="d" * 64,
        random_state={"cpu": "00"},
        num_tokens=10,
        num_answers=5,
        loss_sum=1.5,
        losses=((1.5, 5),),
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def save(directory: Path, model: Any, tokenizer: Any) -> Save:
    def make(step: int = 1, *, dtype: torch.dtype = torch.float32) -> Checkpoint:
        return save_checkpoint(
            directory,
            model=model,
            tokenizer=tokenizer,
            dtype=dtype,
            tensors={"exp_avg.a": torch.arange(3.0)},
            state=state(step),
            manifest={"num_steps": 9, "code_version": "1", "created_at": NOON},
        )

    return make


def reseal(path: Path) -> None:
    """Write a manifest that is true of the files as they are."""
    old = read_manifest(path)
    (path / "manifest.json").unlink()
    write_manifest(path, manifest=old.changed(files=list_files(path)))


def test_a_saved_checkpoint_verifies_and_is_found(save: Save, directory: Path) -> None:
    saved = save(3)
    found, warnings = latest_valid(directory)
    assert found == saved
    assert warnings == ()
    assert found.path.name == "step-00000003"
    assert verify(saved.path).step == 3
    assert load_tensors(found, device=CPU)["exp_avg.a"].tolist() == [0, 1, 2]


def test_only_state_files_are_marked_as_state(save: Save) -> None:
    files = save().manifest.files
    assert {name for name, entry in files.items() if entry.is_state} == {
        "training_state.json",
        "training_state.safetensors",
    }


def test_nothing_is_pickled(save: Save) -> None:
    assert {path.suffix for path in save().path.iterdir()} == {".json", ".safetensors", ".jinja"}


def test_bfloat16_weights_are_declared_as_such(save: Save) -> None:
    path = save(dtype=torch.bfloat16).path
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    assert (path / "model.safetensors").stat().st_size < save(2).manifest.files[
        "model.safetensors"
    ].num_bytes * 0.6


def test_newest_is_by_number_and_not_by_name(save: Save, directory: Path) -> None:
    save(900).path.rename(directory / "step-900")
    save(1000).path.rename(directory / "step-1000")
    found, _ = latest_valid(directory)
    assert found is not None
    assert found.state.step == 1000


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "training_state.safetensors",
        "training_state.json",
        "config.json",
        "manifest.json",
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    save: Save, directory: Path, name: str, damage: Callable[[Path], None]
) -> None:
    older = save(1)
    damage(save(2).path / name)
    found, warnings = latest_valid(directory)
    assert found == older
    assert len(warnings) == 1
    assert "step-00000002 is passed over" in warnings[0]


def file_instead(path: Path) -> None:
    path.write_text("not a checkpoint")


def link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def link_to_something_else(path: Path) -> None:
    other = path.parent / "something-else"
    other.mkdir()
    (other / "kept.txt").write_text("mine")
    path.symlink_to(other)


@pytest.mark.parametrize("damage", [Path.mkdir, file_instead, link_to_nowhere, link_to_something_else])
def test_what_stands_in_a_checkpoints_place_is_passed_over_with_a_warning_and_makes_way(
    save: Save, directory: Path, damage: Callable[[Path], None]
) -> None:
    older = save(1)
    damage(directory / "step-00000002")
    found, warnings = latest_valid(directory)
    assert found == older
    assert len(warnings) == 1
    assert "step-00000002 is passed over" in warnings[0]
    newer = save(2)
    assert latest_valid(directory) == (newer, ())
    assert not newer.path.is_symlink()
    if damage is link_to_something_else:
        assert (directory / "something-else" / "kept.txt").read_text() == "mine"


def test_missing_optimizer_state_is_damage_even_where_the_manifest_agrees(
    save: Save, directory: Path
) -> None:
    older, newer = save(1), save(2)
    (newer.path / "training_state.safetensors").unlink()
    reseal(newer.path)
    found, warnings = latest_valid(directory)
    assert found == older
    assert "no training_state.safetensors" in warnings[0]


def test_state_of_another_step_is_damage(save: Save, directory: Path) -> None:
    saved = save(2)
    write_json(saved.path / "training_state.json", value=state(7).model_dump(mode="json"))
    reseal(saved.path)
    found, warnings = latest_valid(directory)
    assert found is None
    assert "not that of step 2" in warnings[0]


def test_an_unfinished_write_is_no_checkpoint_and_is_removed(save: Save, directory: Path) -> None:
    save(1).path.rename(directory / ".step-00000001.tmp")
    assert latest_valid(directory) == (None, ())
    prepare_directory(directory)
    assert list(directory.iterdir()) == []


def test_a_directory_that_is_not_there_has_no_checkpoints(directory: Path) -> None:
    assert latest_valid(directory) == (None, ())


def test_a_directory_that_cannot_be_made_is_a_bad_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        prepare_directory(tmp_path / "file" / "checkpoints")


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(save: Save, directory: Path) -> None:
    truncate(save(1).path / "model.safetensors")
    again = save(1)
    assert latest_valid(directory) == (again, ())


def test_a_good_checkpoint_that_another_attempt_announced_stays(save: Save, directory: Path) -> None:
    announced = save(1)
    inode = announced.path.stat().st_ino
    assert save(1) == announced
    assert announced.path.stat().st_ino == inode
    assert [path.name for path in directory.iterdir()] == ["step-00000001"]


def test_two_processes_never_write_into_one_half_made_directory(save: Save, directory: Path) -> None:
    half = directory / ".step-00000001.99999.tmp"
    half.mkdir(parents=True)
    save(1)
    assert half.exists()
    prepare_directory(directory)
    assert not half.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_and_leaves_nothing_behind(
    save: Save, directory: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    older = save(1)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(DiskFull, match="no space left"):
        save(2)
    assert [path.name for path in directory.iterdir()] == [older.path.name]


def test_a_checkpoint_that_cannot_be_written_says_why(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(TrainerError, match="Permission denied"):
        save()


@given(num_steps=st.integers(1, 500), num_checkpoints=st.integers(1, 20))
def test_checkpoints_are_spread_evenly_and_the_last_step_has_one(
    num_steps: int, num_checkpoints: int
) -> None:
    chosen = sorted(checkpoint_steps(num_steps, every=None, num_checkpoints=num_checkpoints))
    gaps = {after - before for before, after in zip([0, *chosen], chosen, strict=False)}
    assert len(chosen) == min(num_steps, num_checkpoints)
    assert chosen[-1] == num_steps
    assert max(gaps) - min(gaps) <= 1


def test_a_checkpoint_every_so_many_steps_includes_the_last() -> None:
    assert checkpoint_steps(10, every=4, num_checkpoints=1) == {4, 8, 10}
    assert checkpoint_steps(3, every=4, num_checkpoints=9) == {3}
