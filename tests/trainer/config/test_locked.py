"""A run is refused where its model is not the locked one, or does not descend from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config.job import JobConfig, LockedConfig, check_job
from trainer.config.locked import check_base_model, check_locked
from trainer.errors import ConfigError

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
}


def model(directory: Path, **changes: Any) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return directory


def job(path: Path, **locked: Any) -> JobConfig:
    return check_job(
        {
            "model": {"path": str(path)},
            "data": {"path": "rows.jsonl"},
            "output": {"checkpoints_dir": "checkpoints"},
            "locked": locked,
        }
    )


def test_a_checkpoint_of_the_locked_base_models_shape_is_trained(tmp_path: Path) -> None:
    base, child = model(tmp_path / "base"), model(tmp_path / "child")
    check_locked(job(child, base_model=str(base)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["LlamaForCausalLM"]),
        ("vocab_size", 91),
        ("hidden_size", 64),
        ("num_hidden_layers", 3),
    ],
)
def test_a_model_of_another_shape_does_not_descend_from_the_locked_base_model(
    tmp_path: Path, key: str, value: object
) -> None:
    base, other = model(tmp_path / "base"), model(tmp_path / "other", **{key: value})
    with pytest.raises(ConfigError, match="it does not descend from that") as caught:
        check_locked(job(other, base_model=str(base)))
    assert caught.value.field == "locked.base_model"
    assert str(value if key != "architectures" else "LlamaForCausalLM") in caught.value.message


def test_a_locked_base_model_that_lies_on_another_host_stops_no_run(tmp_path: Path) -> None:
    check_locked(job(model(tmp_path / "child"), base_model=str(tmp_path / "elsewhere")))


def test_a_locked_base_model_in_the_home_of_nobody_is_named(tmp_path: Path) -> None:
    child = model(tmp_path / "child")
    for check in (
        lambda: check_locked(job(child, base_model="~nosuchuser/x")),
        lambda: check_base_model(LockedConfig(base_model="~nosuchuser/x"), path=child),
    ):
        with pytest.raises(ConfigError, match="'~nosuchuser/x', but this host knows no home") as caught:
            check()
        assert caught.value.field == "locked.base_model"


def test_the_locked_base_model_may_come_in_by_any_path_to_it(tmp_path: Path) -> None:
    base = model(tmp_path / "Qwen3-0.6B")
    (tmp_path / "link").symlink_to(base)
    locked = LockedConfig(base_model=str(tmp_path / "link"), model_name="Qwen/Qwen3-0.6B", vocab_size=90)
    check_base_model(locked, path=base)


@pytest.mark.parametrize(
    ("locked", "said"),
    [
        ({"base_model": "/another/model"}, "base_model is locked to '/another/model', but what is"),
        ({"model_name": "Qwen3-8B"}, "model_name = 'Qwen3-8B' does not agree with the model at"),
        ({"model_architecture": "LlamaForCausalLM"}, "model_architecture is locked to 'LlamaForCausalLM'"),
        ({"vocab_size": 7}, "vocab_size is locked to 7"),
    ],
)
def test_another_base_model_than_the_locked_one_is_refused(
    tmp_path: Path, locked: dict[str, Any], said: str
) -> None:
    base = model(tmp_path / "Qwen3-0.6B")
    with pytest.raises(ConfigError) as caught:
        check_base_model(LockedConfig(**locked), path=base)
    assert said in caught.value.message
