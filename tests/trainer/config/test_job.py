"""A job's configuration: unknown keys, wrong values and bad files are refused with a remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.config.adapter import AdapterConfig
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import JobConfig, check_hyperparameters, check_job, read_job
from trainer.errors import ConfigError

JOB: dict[str, Any] = {
    "model": {"path": "model"},
    "data": {"path": "rows.jsonl"},
    "output": {"checkpoints_dir": "checkpoints"},
}


def test_a_job_needs_three_paths_and_nothing_else() -> None:
    config = check_job(JOB)
    assert config.hyperparameters == Hyperparameters()
    assert config.model.max_length == 4096
    assert config.resume


def test_what_the_command_line_sets_stands_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**JOB, "hyperparameters": {"num_epochs": 3, "seed": 1}}))
    config = read_job(
        path, overrides=["hyperparameters.num_epochs=2", "profile.name=regime3", "resume=false"]
    )
    assert (config.hyperparameters.num_epochs, config.hyperparameters.seed) == (2, 1)
    assert (config.profile.name, config.resume) == ("regime3", False)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("num_epochs", "is not section.key=value"),
        ("a..c=1", "is not section.key=value"),
        (".a=1", "is not section.key=value"),
        ("a.b.c=1", "a is not a setting"),
        ("model.path.x=1", "model.path is no section"),
        ("hyperparameters.adapter.rnk=8", "Did you mean hyperparameters.adapter.rank?"),
        ("resume.x=1", "resume"),
        ("hyperparameters.num_epoch=2", "Did you mean hyperparameters.num_epochs?"),
        ("hyperparameters.learning_rate=NaN", "learning_rate = 'NaN'"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, reason: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(JOB))
    with pytest.raises(ConfigError) as caught:
        read_job(path, overrides=[override])
    assert reason in str(caught.value)


@pytest.mark.parametrize("adapter", [{}, {"adapter": None}, {"adapter": "lora"}, {"adapter": {"alpha": 8}}])
def test_the_command_line_reaches_an_adapter_however_the_file_names_it(
    tmp_path: Path, adapter: dict[str, Any]
) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**JOB, "hyperparameters": adapter}))
    config = read_job(path, overrides=["hyperparameters.adapter.rank=8"])
    assert config.hyperparameters.adapter is not None
    assert config.hyperparameters.adapter.rank == 8


def test_what_the_command_line_sets_one_after_another_stands_together(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(JOB))
    overrides = ["hyperparameters.adapter=lora", "hyperparameters.adapter.rank=8", "model.path=other"]
    config = read_job(path, overrides=overrides)
    assert config.hyperparameters.adapter == AdapterConfig(rank=8)
    assert config.model.path == Path("other")


def test_a_job_survives_its_own_json(tmp_path: Path) -> None:
    config = check_job({**JOB, "output": {"checkpoints_dir": "x", "checkpoint_every_steps": 5}})
    path = tmp_path / "job.json"
    path.write_text(config.model_dump_json())
    assert read_job(path) == config
    assert isinstance(read_job(path), JobConfig)


def test_overrides_replace_defaults() -> None:
    assert check_hyperparameters({"learning_rate": 3e-3}) == Hyperparameters(learning_rate=3e-3)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lerning_rate", "learning_rate"),
        ("lr", "learning_rate"),
        ("epochs", "num_epochs"),
        ("warmup", "warmup_steps"),
    ],
)
def test_a_mistaken_name_is_answered_with_the_right_one(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_hyperparameters({name: 1})
    assert caught.value.field == f"hyperparameters.{name}"
    assert caught.value.remedy == f"Did you mean {meant}?"


def test_a_name_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"Known are learning_rate, schedule, .*seed\."):
        check_hyperparameters({"zzzz": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("num_epochs", 0),
        ("num_epochs", 1.5),
        ("num_epochs", True),
        ("max_steps", 0),
        ("tokens_per_batch", 0),
        ("tokens_per_batch", 1 << 31),
        ("tokens_per_batch", 1 << 63),
        ("weight_decay", -0.1),
        ("max_grad_norm", 0),
        ("adam_beta1", 1),
        ("schedule", "polynomial"),
        ("seed", -1),
        ("warmup_steps", None),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_hyperparameters({name: value})
    assert caught.value.field == f"hyperparameters.{name}"
    assert repr(value) in caught.value.message


def test_a_setting_at_the_wrong_level_is_sent_to_its_section() -> None:
    with pytest.raises(ConfigError, match=r"It belongs in 'hyperparameters': hyperparameters\.learning_rate"):
        check_job({**JOB, "learning_rate": 1e-3})


def test_a_mistake_inside_a_section_is_answered_from_that_section() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean model\.max_length\?"):
        check_job({**JOB, "model": {"path": "m", "max_seq_length": 9}})


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data is missing\. Add data\."):
        check_job({name: value for name, value in JOB.items() if name != "data"})


@pytest.mark.parametrize("character", ["\0", "\ud800"])
@pytest.mark.parametrize(
    "place",
    [
        "job_id",
        "parent_checkpoint_id",
        "model.path",
        "data.path",
        "data.dataset_id",
        "data.token_cache_dir",
        "output.checkpoints_dir",
        "monitoring.validation_path",
        "monitoring.logs_dir",
        "locked.base_model",
        "locked.model_name",
    ],
)
def test_a_text_or_path_that_nothing_can_bear_is_named(place: str, character: str) -> None:
    job: dict[str, Any] = {name: dict(part) for name, part in JOB.items()}
    section, _, name = place.rpartition(".")
    (job.setdefault(section, {}) if section else job)[name] = f"a{character}b"
    with pytest.raises(ConfigError, match=r" = 'a\\.*b': it holds ") as caught:
        check_job(job)
    assert caught.value.field == place
    assert caught.value.remedy


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:10", "cuda:99"])
def test_a_device_may_be_a_card_by_its_number(device: str) -> None:
    assert check_job({**JOB, "environment": {"device": device}}).environment.device == device


@pytest.mark.parametrize("device", ["cuda:", "cuda:01", "cuda:128", "cuda:99999999999999999999", "cpu\n"])
def test_a_device_that_torch_cannot_name_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"environment\.device = .*such as cuda:1\."):
        check_job({**JOB, "environment": {"device": device}})


def test_further_problems_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(1 more\)"):
        check_hyperparameters({"num_epochs": 0, "seed": -1})


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        check_hyperparameters({"schedule": "x" * 5000})
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "not list"),
        ("[" * 100_000, "not valid JSON"),
        ('{"hyperparameters": {"learning_rate": NaN}}', "NaN is not a number"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_job(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job\.json cannot be read"):
        read_job(tmp_path / "job.json")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(json.dumps(JOB).encode("utf-16"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_job(path)


@pytest.mark.integration
def test_a_worker_checks_a_job_without_loading_torch() -> None:
    code = (
        "import sys, trainer.config.job, trainer.messages, trainer.process;"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
