"""Adapters learn, what they stand beside stays, and a checkpoint of both is a plain model."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from registry.manifests import verify
from trainer.config.adapter import AdapterConfig
from trainer.config.job import JobConfig, check_hyperparameters
from trainer.core import engine as engines
from trainer.core import run as runs
from trainer.core.adapters import add_adapter, merged_state
from trainer.core.data import TokenizedDataset
from trainer.core.engine import TrainerEngine
from trainer.core.loss import answer_logits, collate
from trainer.core.models import copied, load_model, load_tokenizer
from trainer.errors import ConfigError
from trainer.messages import ChildMessage, Progress, TrainingResult
from trainer.testing import ScriptedControl

CPU = torch.device("cpu")
MakeEngine = Callable[..., TrainerEngine]
JobFactory = Callable[..., JobConfig]
LORA: dict[str, Any] = {"learning_rate": 1e-2, "adapter": {"kind": "lora", "rank": 4, "alpha": 8}}


def weights_of(result: TrainingResult) -> str:
    return verify(Path(str(result.final_checkpoint))).weights_sha256


def adapted(model: Any, **settings: Any) -> Any:
    """With adapters that have learnt something: B begins as zeros."""
    add_adapter(model, settings=AdapterConfig(**settings), seed=1, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return model


def test_a_merged_model_says_what_the_adapted_one_does(
    model: Any, model_directory: Path, tokenizer: Any, dataset: TokenizedDataset
) -> None:
    plain = load_model(model_directory, device=CPU, tokenizer=tokenizer)
    batch = collate(dataset, indices=np.arange(6), device=CPU)
    with torch.no_grad():
        before = answer_logits(plain, batch=batch)
        expected = answer_logits(adapted(model, rank=4), batch=batch)
        plain.load_state_dict(merged_state(model, state=model.state_dict(), dtype=torch.float32))
        merged = answer_logits(plain, batch=batch)
    assert not torch.allclose(before, expected, atol=1e-2)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)


def test_only_the_layers_that_were_named_change(model: Any, model_directory: Path) -> None:
    base = load_file(model_directory / "model.safetensors")
    adapted(model, target_modules=("q_proj",))
    merged = merged_state(model, state=model.state_dict(), dtype=torch.float32)
    changed = {name for name, tensor in base.items() if not torch.equal(merged[name], tensor)}
    assert changed == {name for name in base if "q_proj" in name}
    assert {name.split(".")[-4] for name, one in model.named_parameters() if one.requires_grad} == {"q_proj"}


def merged_at_once(model: Any, *, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As it was computed before: a whole float32 model, which whoever saves it rounds."""
    merged: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    for name, tensor in state.items():
        owner, is_base, leaf = name.partition(".base_layer.")
        if is_base and leaf == "weight":
            delta = layers[owner].get_delta_weight("default").float()
            merged[f"{owner}.{leaf}"] = (tensor.float() + delta).detach()
        elif is_base or name.split(".lora_")[0] not in layers:
            merged[name.replace(".base_layer.", ".")] = tensor
    return merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copies", [False, True])
def test_weights_merged_one_by_one_are_those_merged_at_once_to_the_bit(
    model: Any, dtype: torch.dtype, copies: bool
) -> None:
    add_adapter(model, settings=AdapterConfig(rank=4, alpha=7), seed=1, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    state = model.state_dict()
    expected = merged_at_once(model, state=state)
    merged = merged_state(model, state=state, dtype=dtype, copies=copies)
    assert list(merged) == list(expected)
    for name, tensor in merged.items():
        is_new = copies or "_proj" in name
        assert torch.equal(tensor.to(dtype), expected[name].to(dtype))
        assert tensor.dtype == (dtype if is_new else torch.float32)
        assert is_new == (tensor.data_ptr() not in {one.data_ptr() for one in state.values()})
    assert merged["lm_head.weight"].data_ptr() == merged["model.embed_tokens.weight"].data_ptr()


@pytest.mark.parametrize("overlaps", ["on", "off"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_checkpoint_is_the_one_that_was_merged_at_once_to_the_bit(
    engine: MakeEngine,
    job: JobFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    overlaps: str,
) -> None:
    def before(model: Any, *, state: Any, dtype: torch.dtype, copies: bool) -> dict[str, torch.Tensor]:
        merged = merged_at_once(model, state=state)
        return copied(merged, dtype=dtype) if copies else merged

    chosen = {"hyperparameters": LORA, "model": {"dtype": dtype}}
    found = []
    for name in ("one-by-one", "at-once"):
        output = {"checkpoints_dir": str(tmp_path / name), "overlap_writing": overlaps}
        found.append(weights_of(engine().run_job(job(**chosen, output=output))))
        monkeypatch.setattr(runs, "merged_state", before)
    assert found[0] == found[1]


def test_a_job_with_adapters_leaves_the_rest_of_its_parent_alone(
    engine: MakeEngine, job: JobFactory, model_directory: Path, said: list[ChildMessage]
) -> None:
    result = engine().run_job(job(hyperparameters={**LORA, "num_epochs": 3}))
    losses = [message.loss for message in said if isinstance(message, Progress)]
    path = Path(str(result.final_checkpoint))
    base, saved = (load_file(place / "model.safetensors") for place in (model_directory, path))
    assert losses[-1] < losses[0]
    assert base.keys() == saved.keys()
    assert all(torch.equal(base[name], saved[name]) != ("_proj" in name) for name in base)
    state = load_file(path / "training_state.safetensors")
    assert all(".lora_" in name for name in state)
    load_model(path, device=CPU, tokenizer=load_tokenizer(path))


@pytest.mark.parametrize(("dropout", "dtype"), [(0.0, "float32"), (0.2, "float32"), (0.2, "bfloat16")])
def test_a_stopped_run_goes_on_to_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, dropout: float, dtype: str
) -> None:
    adapter = {**LORA["adapter"], "dropout": dropout}
    chosen = {"hyperparameters": {**LORA, "adapter": adapter}, "model": {"dtype": dtype}}
    whole = engine().run_job(job(**chosen, output={"checkpoints_dir": str(tmp_path / "whole")}))
    engine(control=ScriptedControl(after_steps=2)).run_job(job(**chosen))
    resumed = engine().run_job(job(**chosen))
    assert weights_of(resumed) == weights_of(whole)
    assert resumed.mean_loss == whole.mean_loss


def test_matrices_that_stay_are_kept_in_bfloat16_to_the_same_loss(
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = {"hyperparameters": LORA, "model": {"dtype": "bfloat16"}}
    engine().run_job(job(**chosen, output={"checkpoints_dir": str(tmp_path / "half")}))
    half = [message.loss for message in said if isinstance(message, Progress)]
    said.clear()

    def in_float32(model: Any, **options: Any) -> None:
        add_adapter(model, **{**options, "dtype": torch.float32})

    monkeypatch.setattr(engines, "add_adapter", in_float32)
    engine().run_job(job(**chosen, output={"checkpoints_dir": str(tmp_path / "full")}))
    assert half == [message.loss for message in said if isinstance(message, Progress)]


def test_a_checkpoint_of_adapters_is_the_parent_of_a_full_fine_tuning(
    engine: MakeEngine, job: JobFactory, tmp_path: Path
) -> None:
    first = engine().run_job(job(hyperparameters=LORA))
    elsewhere = {"checkpoints_dir": str(tmp_path / "next")}
    second = engine().run_job(job(model={"path": str(first.final_checkpoint)}, output=elsewhere))
    assert second.step == second.num_steps


def test_a_layer_that_is_not_there_is_named_with_those_that_are(model: Any) -> None:
    with pytest.raises(ConfigError, match="'query' is no linear layer") as caught:
        adapted(model, target_modules=("query",))
    assert "q_proj" in caught.value.remedy


def small(family: str) -> Any:
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))


@pytest.mark.parametrize("settings", [{}, {"target_modules": ("c_attn",)}])
def test_a_model_without_linear_layers_is_refused_with_what_helps(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="GPT2LMHeadModel .* has no linear layer") as caught:
        adapted(small("gpt2"), **settings)
    assert caught.value.field == "hyperparameters.adapter"
    assert caught.value.value == AdapterConfig(**settings).model_dump(mode="json")
    assert "Leave the adapter out" in caught.value.remedy


def test_what_peft_says_of_a_model_that_it_cannot_adapt_is_the_trainers_own_error() -> None:
    with pytest.raises(ConfigError, match="PEFT cannot adapt MambaForCausalLM .family mamba.:") as caught:
        adapted(small("mamba"))
    assert caught.value.field == "hyperparameters.adapter"
    assert caught.value.remedy


def test_memory_that_runs_out_while_adapters_are_made_stays_what_it_is(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("peft.inject_adapter_in_model", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        adapted(model)


def test_without_peft_the_remedy_is_said(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without_peft(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ConfigError) as caught:
        adapted(model)
    assert "pip install 'tandem[lora]'" in caught.value.remedy


def test_an_adapter_is_asked_for_by_name_and_unknown_keys_are_refused() -> None:
    assert check_hyperparameters({"adapter": "lora"}).adapter == AdapterConfig()
    with pytest.raises(ConfigError, match=r"hyperparameters\.adapter\.rnk is not a setting") as caught:
        check_hyperparameters({"adapter": {"kind": "lora", "rnk": 8}})
    assert "adapter.rank" in caught.value.remedy
    with pytest.raises(ConfigError, match="adapter.kind"):
        check_hyperparameters({"adapter": "qlora"})


def test_a_job_without_one_is_kept_as_it_was_before_there_were_any() -> None:
    assert "adapter" not in check_hyperparameters({}).as_json()
    assert check_hyperparameters(check_hyperparameters({"adapter": "lora"}).as_json()).adapter is not None
