"""Loading what training starts from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from registry.files import sha256_file
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest
from trainer.core.data import TokenizedDataset
from trainer.core.loss import collate
from trainer.core.models import (
    check_causal,
    check_positions,
    check_projection,
    identify_model,
    load_model,
    load_tokenizer,
    most_tokens,
)
from trainer.errors import ConfigError, ModelError
from trainer.testing import NOON

CPU = torch.device("cpu")


@pytest.fixture
def copy(model_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_directory, tmp_path / "copy"))


def seal(directory: Path) -> None:
    files = list_files(directory)
    manifest = Manifest(files=files, weights_sha256=weights_sha256(files), code_version="1", created_at=NOON)
    write_manifest(directory, manifest=manifest)


def test_a_model_is_identified_by_its_weights(copy: Path) -> None:
    expected = sha256_file(copy / "model.safetensors")
    assert identify_model(copy) == expected
    seal(copy)
    assert identify_model(copy) == expected


def test_a_sealed_model_that_was_changed_is_refused(copy: Path) -> None:
    seal(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json"):
        identify_model(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no .safetensors weights"):
        identify_model(copy)


def test_weights_that_are_missing_are_not_made_up(copy: Path, tokenizer: Any) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing_keys: model\.norm\.weight"):
        load_model(copy, device=CPU, tokenizer=tokenizer)


def test_truncated_weights_are_refused(copy: Path, tokenizer: Any) -> None:
    os.truncate(copy / "model.safetensors", 1000)
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        load_model(copy, device=CPU, tokenizer=tokenizer)


def test_a_tokenizer_of_another_model_is_refused(copy: Path, tokenizer: Any) -> None:
    tokenizer.add_tokens(["extra"])
    with pytest.raises(ModelError, match="belongs to another model"):
        load_model(copy, device=CPU, tokenizer=tokenizer)


def test_a_damaged_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(copy)


def test_bfloat16_weights_are_trained_in_float32(copy: Path, tokenizer: Any) -> None:
    weights = {name: value.bfloat16() for name, value in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    model = load_model(copy, device=CPU, tokenizer=tokenizer)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_logits_that_are_the_output_projection_pass(model: Any, dataset: TokenizedDataset) -> None:
    check_projection(model, batch=collate(dataset, indices=np.array([0]), device=CPU))
    assert model.training


def test_weights_that_are_no_numbers_are_called_so(model: Any, dataset: TokenizedDataset) -> None:
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="outputs of Qwen3ForCausalLM are not finite"):
        check_projection(model, batch=collate(dataset, indices=np.array([0]), device=CPU))


def test_a_token_that_a_model_forbids_makes_no_broken_model(
    model: Any, dataset: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = type(model).forward

    def forbidding(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        output.logits[..., 0] = float("-inf")
        return output

    monkeypatch.setattr(type(model), "forward", forbidding)
    check_projection(model, batch=collate(dataset, indices=np.array([0]), device=CPU))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_an_encoder_is_refused_since_it_sees_what_it_is_to_foretell(
    dataset: TokenizedDataset, family: str
) -> None:
    model = of_family(family, intermediate_size=32)
    with pytest.raises(ModelError, match="looks at the words that it is to foretell"):
        check_causal(model, batch=collate(dataset, indices=np.array([0]), device=CPU))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"is_decoder": True, "intermediate_size": 32}),
        ("gpt2", {}),
        ("mamba", {}),
        ("bloom", {}),
        ("falcon", {"alibi": True}),
    ],
)
def test_a_model_that_looks_back_alone_passes(
    dataset: TokenizedDataset, family: str, changes: dict[str, Any]
) -> None:
    model = of_family(family, **changes)
    check_causal(model, batch=collate(dataset, indices=np.array([0]), device=CPU))
    assert model.training


def of_family(family: str, **changes: Any) -> Any:
    """With weights so wide that what it sees makes a difference."""
    small = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **small, initializer_range=0.5, **changes)
    return AutoModelForCausalLM.from_config(config).train()


def test_a_name_that_is_too_long_for_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.path = '.*cannot be read: File name too long"):
        identify_model(tmp_path / ("n" * 300))


def with_positions(num_positions: int, *, is_table: bool) -> Any:
    """GPT-2 looks its positions up, Llama computes them."""
    shape = {"vocab_size": 200, "max_position_embeddings": num_positions}
    if is_table:
        return GPT2LMHeadModel(GPT2Config(**shape, n_embd=8, n_layer=1, n_head=1))
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**shape, **small))


@pytest.mark.parametrize("is_table", [True, False])
def test_a_row_as_long_as_the_positions_passes(dataset: TokenizedDataset, *, is_table: bool) -> None:
    num_positions = int(dataset.lengths.max()) - 1  # the last token is only ever a target
    model = with_positions(num_positions, is_table=is_table)
    check_positions(model, dataset=dataset, warn=pytest.fail)
    longest = np.array([dataset.lengths.argmax()])
    assert torch.isfinite(model(collate(dataset, indices=longest, device=CPU).input_ids).logits).all()


def test_a_row_longer_than_a_table_of_positions_is_refused(dataset: TokenizedDataset) -> None:
    longest = int(dataset.lengths.argmax())
    model = with_positions(int(dataset.lengths.max()) - 2, is_table=True)
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has .* positions and cannot read it") as caught:
        check_positions(model, dataset=dataset, warn=pytest.fail)
    assert caught.value.message.startswith(f"Row {dataset.row_numbers[longest]} has ")
    assert caught.value.field == "model.max_length"
    assert f"Set max_length to {model.config.n_positions}" in caught.value.remedy


def test_two_rows_before_the_first_position_make_no_table_longer(dataset: TokenizedDataset) -> None:
    small = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8, "num_attention_heads": 1}
    config = OPTConfig(vocab_size=200, max_position_embeddings=16, num_hidden_layers=1, **small)
    with pytest.raises(ConfigError, match="OPTForCausalLM has 16 positions"):
        check_positions(OPTForCausalLM(config), dataset=dataset, warn=pytest.fail)


def test_a_row_behind_positions_that_are_computed_is_worth_a_warning(dataset: TokenizedDataset) -> None:
    warnings: list[str] = []
    check_positions(with_positions(16, is_table=False), dataset=dataset, warn=warnings.append)
    (warning,) = warnings
    assert "LlamaForCausalLM was made for 16" in warning


@pytest.mark.parametrize(("is_table", "most"), [(True, 17), (False, None)])
def test_the_longest_row_that_can_be_read_ends_with_a_target(*, is_table: bool, most: int | None) -> None:
    assert most_tokens(with_positions(16, is_table=is_table)) == most


def test_a_model_without_positions_reads_any_row(dataset: TokenizedDataset) -> None:
    config = BloomConfig(vocab_size=200, hidden_size=8, n_layer=1, n_head=1)
    check_positions(BloomForCausalLM(config), dataset=dataset, warn=pytest.fail)


def test_logits_changed_after_the_projection_are_refused(
    model: Any, dataset: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = type(model).forward

    def capped(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    monkeypatch.setattr(type(model), "forward", capped)
    with pytest.raises(ModelError, match="changes its logits"):
        check_projection(model, batch=collate(dataset, indices=np.array([0]), device=CPU))
