"""`tandem train --plan`."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from config.settings import Settings
from registry.errors import TandemError
from tasks.cli import planning
from trainer.dataset_shape import RowSettings
from workers.errors import RequestError

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
}


@pytest.fixture
def base_model(settings: Settings) -> Path:
    directory = settings.paths.base_model
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": np.zeros((500, 64), np.float32)}, directory / "model.safetensors")
    return directory


def test_a_plan_for_a_card_is_printed(base_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planning.train(plan=True, card="24GB")
    said = capsys.readouterr().out
    assert "bfloat16, with gradient checkpointing" in said
    assert "optimizer" in said
    assert "fits in 24.0 GB" in said
    assert "cross_entropy = auto; with all logits at once (plain) the peak would be" in " ".join(said.split())


def test_a_plan_as_json_is_for_this_host(base_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planning.train(plan=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["weights"] == 4 * 500 * 64
    assert found["largest_tokens"] > found["tokens_per_batch"] == 8192


def test_without_plan_the_way_to_train_is_named(settings: Settings) -> None:
    with pytest.raises(RequestError, match="tandem submit"):
        planning.train()


def test_a_plan_knows_what_adapters_save(base_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planning.train(plan=True, card="24GB", set_=["adapter=lora"], as_json=True)
    lora = json.loads(capsys.readouterr().out)
    planning.train(plan=True, card="24GB", as_json=True)
    full = json.loads(capsys.readouterr().out)
    assert lora["mode"]["adapter"]["rank"] == 16
    assert lora["memory"]["optimizer"] == 2 * lora["memory"]["gradients"]
    assert full["mode"]["adapter"] is None


def test_a_plan_for_several_processes_says_what_is_of_one_and_what_of_all(
    base_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_TRAINING__NUM_PROCESSES", "2")
    planning.train(plan=True, card="24GB", set_=["tokens_per_batch=8000"])
    said = " ".join(capsys.readouterr().out.split())
    assert "2 processes share each batch" in said
    assert "tokens_per_batch = 8000 fits" in said


def test_a_plan_counts_rows_as_the_host_or_the_command_will_have_them(
    base_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[RowSettings] = []

    def read(_path: Path, *, rows: RowSettings, **_options: object) -> None:
        asked.append(rows)

    monkeypatch.setattr(planning, "read_dataset_shape", read)
    monkeypatch.setenv("TANDEM_TRAINING__PROFILE", "regime3")
    monkeypatch.setenv("TANDEM_TRAINING__OVERLONG", "reject")
    planning.train(tmp_path / "rows.jsonl", plan=True, card="24GB")
    planning.train(tmp_path / "rows.jsonl", plan=True, card="24GB", profile="plain_sft", overlong="truncate")
    assert [(rows.profile, rows.overlong) for rows in asked] == [
        ("regime3", "reject"),
        ("plain_sft", "truncate"),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"overlong": "cut"}, "'cut' is none of drop"), ({"profile": "nobody"}, "no profile")],
)
def test_rows_that_nobody_would_train_on_are_not_planned(
    base_model: Path, options: dict[str, str], said: str
) -> None:
    with pytest.raises(TandemError, match=said):
        planning.train(plan=True, card="24GB", **options)
