"""Going on after anything that can happen to a checkpoint: from the one before it, or anew, saying so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.manifests import verify
from trainer.config.job import JobConfig
from trainer.core.checkpoints import latest_valid
from trainer.core.engine import TrainerEngine
from trainer.errors import ConfigError
from trainer.messages import ChildMessage, Progress, Started, TrainingResult, Warned
from trainer.testing import ScriptedControl

MakeEngine = Callable[..., TrainerEngine]
JobFactory = Callable[..., JobConfig]

FILES = (
    "chat_template.jinja",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_state.json",  # step, sums, sampler position, random numbers
    "training_state.safetensors",  # the optimizer
)


def of(kind: type[Any], said: list[ChildMessage]) -> list[Any]:
    return [message for message in said if isinstance(message, kind)]


def weights_of(result: TrainingResult) -> str:
    return verify(Path(str(result.final_checkpoint))).weights_sha256


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_a_name(path: Path) -> None:
    """Of a manifest, in its note of the settings; elsewhere of the first letter that there is."""
    content = bytearray(path.read_bytes())
    note = content.find(b'"plain_sft"') + 1 if path.name == "manifest.json" else 0
    place = next(place for place in range(note, len(content)) if chr(content[place]).isalpha())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES = [truncate, fill_with_zeros, flip_a_bit, flip_a_bit_of_a_name, Path.unlink]


@pytest.fixture
def config(job: JobFactory) -> JobConfig:
    return job(output={"checkpoint_every_steps": 1})


@pytest.fixture
def directory(config: JobConfig) -> Path:
    return config.output.checkpoints_dir


@pytest.fixture
def whole(engine: MakeEngine, job: JobFactory, tmp_path: Path) -> str:
    """The weights of the run that nothing happened to."""
    return weights_of(engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "whole")})))


@pytest.fixture
def stopped(engine: MakeEngine, config: JobConfig, said: list[ChildMessage]) -> None:
    """Three steps were taken, each with its checkpoint."""
    engine(control=ScriptedControl(after_steps=3)).run_job(config)
    said.clear()


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_of_the_newest_is_found_and_named(
    stopped: None, directory: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    names = [path.name for path in (directory / "step-00000003").iterdir()]
    assert set(FILES) <= set(names)
    for name in names:
        copy = tmp_path / "copies" / name
        shutil.copytree(directory, copy)
        damage(copy / "step-00000003" / name)
        found, warnings = latest_valid(copy)
        assert found is not None, name
        assert found.path.name == "step-00000002", name
        assert len(warnings) == 1, name
        assert "step-00000003 is passed over" in warnings[0]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["training_state.safetensors", "training_state.json"])
def test_a_run_goes_on_from_the_one_before_to_the_same_bits(
    stopped: None,
    engine: MakeEngine,
    config: JobConfig,
    directory: Path,
    said: list[ChildMessage],
    whole: str,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    damage(directory / "step-00000003" / name)
    said.clear()
    result = engine().run_job(config)
    assert of(Started, said)[0].resumed_from_step == 2
    assert "step-00000003 is passed over" in of(Warned, said)[0].message
    assert weights_of(result) == whole


def test_what_is_no_checkpoint_is_passed_over_to_the_same_bits(
    stopped: None,
    engine: MakeEngine,
    config: JobConfig,
    directory: Path,
    said: list[ChildMessage],
    whole: str,
) -> None:
    (directory / "step-00000009").mkdir()
    shutil.copytree(directory / "step-00000003", directory / ".step-00000004.123.tmp")
    (directory / ".step-00000004.123.tmp" / "manifest.json").unlink()
    said.clear()
    result = engine().run_job(config)
    assert of(Started, said)[0].resumed_from_step == 3
    assert ["step-00000009" in warned.message for warned in of(Warned, said)] == [True]
    assert weights_of(result) == whole
    assert not (directory / ".step-00000004.123.tmp").exists()


def test_where_none_is_left_the_run_begins_anew_and_says_why(
    stopped: None,
    engine: MakeEngine,
    config: JobConfig,
    directory: Path,
    said: list[ChildMessage],
    whole: str,
) -> None:
    for path in directory.glob("step-*"):
        truncate(path / "training_state.safetensors")
    said.clear()
    result = engine().run_job(config)
    assert of(Started, said)[0].resumed_from_step is None
    assert of(Progress, said)[0].step == 1
    assert len(of(Warned, said)) == 3
    assert weights_of(result) == whole


def test_another_runs_newer_checkpoint_is_passed_over_and_never_removed(
    stopped: None,
    engine: MakeEngine,
    job: JobFactory,
    config: JobConfig,
    directory: Path,
    said: list[ChildMessage],
    tmp_path: Path,
    whole: str,
) -> None:
    other = tmp_path / "other"
    changes = {"checkpoint_every_steps": 1, "checkpoints_dir": str(other)}
    engine(control=ScriptedControl(after_steps=4)).run_job(
        job(job_id="job-2", hyperparameters={"seed": 9}, output=changes)
    )
    foreign = shutil.copytree(other / "step-00000004", directory / "step-00000004")
    weights = verify(foreign).weights_sha256
    said.clear()
    result = engine().run_job(config)
    assert of(Started, said)[0].resumed_from_step == 3
    assert "step-00000004 is passed over: it is of another run (job job-2)" in of(Warned, said)[0].message
    assert weights_of(result) == whole
    (aside,) = directory.glob("step-00000004.of-*")
    assert verify(aside).weights_sha256 == weights
    assert verify(directory / "step-00000004").weights_sha256 != weights


def test_a_directory_of_another_run_alone_is_refused(
    stopped: None, engine: MakeEngine, job: JobFactory
) -> None:
    with pytest.raises(ConfigError, match="with other learning_rate"):
        engine().run_job(job(hyperparameters={"learning_rate": 2e-3}))


def test_the_next_file_has_a_schedule_of_its_own(
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    tmp_path: Path,
    write_rows: Callable[..., Path],
) -> None:
    first = engine().run_job(job())
    following = write_rows(
        [{"prompt": f"say {letter}", "completion": letter} for letter in "abcdefgh"], name="next"
    )
    said.clear()
    second = engine().run_job(
        job(
            model={"path": str(first.final_checkpoint)},
            data={"path": str(following)},
            output={"checkpoints_dir": str(tmp_path / "next-checkpoints")},
            hyperparameters={"tokens_per_batch": 120, "num_epochs": 2},
        )
    )
    (started,) = of(Started, said)
    rates = [progress.learning_rate for progress in of(Progress, said)]
    assert started.resumed_from_step is None
    assert second.step == second.num_steps == len(rates) > 2
    assert rates[0] == pytest.approx(0.5e-3)  # the warm-up of two steps
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == min(rates[1:])
