"""Fused layers beside transformers' own: the same logits and gradients, of any batch, whatever learns."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from trainer.config.adapter import AdapterConfig
from trainer.core.adapters import add_adapter
from trainer.core.fused_layers import fuse_layers, suits_fused_layers
from trainer.core.packed_attention import Segments, use_packed_attention

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
# Of the largest value. transformers' norms are in single precision even here; a wrong sign or a forgotten
# term moves a thousand times more.
TOLERANCE = 1e-5


def pair() -> tuple[Any, Any]:
    """A model of transformers' layers with norms that weigh, and the same with fused ones."""
    torch.manual_seed(0)
    plain = Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)).double().train()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 2.0)
    fused = deepcopy(plain)
    fuse_layers(fused)
    return plain, fused


def learnt(model: Any, ids: Tensor, **options: Any) -> dict[str, Tensor]:
    """Logits, and the gradient of each weight that learns."""
    logits = model(input_ids=ids, use_cache=False, **options).logits
    logits.logsumexp(-1).square().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach(), **gradients}


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(value.abs().max())
        assert float((value - other[name]).abs().max()) <= TOLERANCE * scale, name


@pytest.mark.parametrize(("rows", "length"), [(1, 2), (1, 17), (5, 8)])
def test_logits_and_gradients_are_those_of_transformers(rows: int, length: int) -> None:
    plain, fused = pair()
    ids = torch.randint(0, 50, (rows, length))
    assert_alike(learnt(plain, ids), learnt(fused, ids))


def test_positions_that_begin_again_are_rotated_from_their_beginning() -> None:
    plain, fused = pair()
    for model in (plain, fused):
        use_packed_attention(model)
    ids = torch.randint(0, 50, (1, 9))
    segments = Segments(lengths=(4, 5), starts=torch.tensor([0, 4, 9], dtype=torch.int32))
    options = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), "segments": segments}
    assert_alike(learnt(plain, ids, **options), learnt(fused, ids, **options))


def test_adapters_learn_alike_and_what_is_frozen_gets_no_gradient() -> None:
    plain, fused = pair()
    for model in (plain, fused):
        add_adapter(model, settings=AdapterConfig(rank=4), seed=0, dtype=torch.float32)
        model.double()
    ids = torch.randint(0, 50, (3, 7))
    found = learnt(fused, ids)
    assert_alike(learnt(plain, ids), found)
    assert not any("norm" in name for name in found)


def test_a_batch_with_an_infinite_weight_is_no_better_for_it() -> None:
    _, fused = pair()
    with torch.no_grad():
        fused.get_input_embeddings().weight[3, 3] = float("inf")
    found = learnt(fused, torch.tensor([[3, 4, 5]]))
    assert not torch.isfinite(found["logits"]).any()


def test_what_is_cached_is_read_by_transformers_own_layers() -> None:
    plain, fused = (model.eval() for model in pair())
    ids = torch.randint(0, 50, (1, 5))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(plain.generate(ids, **options), fused.generate(ids, **options))


def test_layers_of_another_family_stay_as_they_are() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    fuse_layers(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("device", "dtype", "suits"),
    [("cpu", torch.float32, True), ("cpu", torch.bfloat16, False), ("cuda", torch.float32, False)],
)
def test_only_full_precision_on_a_cpu_is_fused(device: str, dtype: torch.dtype, suits: bool) -> None:
    assert suits_fused_layers(device=torch.device(device), dtype=dtype) is suits
