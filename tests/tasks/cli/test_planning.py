"""`tandem train --plan`."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from config.settings import Settings
from tasks.cli import planning
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
