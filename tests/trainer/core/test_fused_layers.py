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
from trainer.core.exchange import layers_of
from trainer.core.fused_layers import fuse_layers, picks_places, suits_fused_layers
from trainer.core.models import checkpoint_gradients
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
    return {"logits": logits.detach(), **gradients_of(model)}


def learnt_at(model: Any, ids: Tensor, *, places: Tensor, **options: Any) -> dict[str, Tensor]:
    """Hidden states at some places of the flattened input, and the gradient of each weight that learns."""
    if picks_places(model.base_model):
        options["places"] = places
    states = model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state
    if not picks_places(model.base_model):
        states = states.flatten(0, 1)[places]
    model.get_output_embeddings()(states).logsumexp(-1).square().sum().backward()
    return {"states": states.detach(), **gradients_of(model)}


def gradients_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


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


PLACES = ([2], [3, 4, 11], [13], list(range(14)))


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_places_that_are_asked_for_are_those_of_the_whole(places: list[int], is_checkpointed: bool) -> None:
    plain, fused = pair()
    if is_checkpointed:
        checkpoint_gradients(fused)
    ids = torch.randint(0, 50, (2, 7))
    expected = learnt_at(plain, ids, places=torch.tensor(places))
    assert len(expected["states"]) == len(places)
    assert_alike(expected, learnt_at(fused, ids, places=torch.tensor(places)))


def test_places_of_packed_rows_and_under_adapters_are_those_of_the_whole() -> None:
    plain, fused = pair()
    for model in (plain, fused):
        use_packed_attention(model)
        add_adapter(model, settings=AdapterConfig(rank=4), seed=0, dtype=torch.float32)
        model.double()
    segments = Segments(lengths=(4, 5), starts=torch.tensor([0, 4, 9], dtype=torch.int32))
    options = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), "segments": segments}
    ids, places = torch.randint(0, 50, (1, 9)), torch.tensor([2, 3, 7])
    assert_alike(
        learnt_at(plain, ids, places=places, **options), learnt_at(fused, ids, places=places, **options)
    )


def test_the_last_layer_computes_nothing_behind_its_attention_that_was_not_asked_for() -> None:
    _, fused = pair()
    read: list[list[int]] = []
    for layer in fused.base_model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp):
            module.register_forward_pre_hook(lambda _module, inputs: read.append(list(inputs[0].shape)))
    learnt_at(fused, torch.randint(0, 50, (2, 7)), places=torch.tensor([5, 6, 12]))
    assert read == [[2, 7, 32], [2, 7, 24], [3, 32], [3, 24]]


def test_every_layer_is_sharded_as_one() -> None:
    plain, fused = pair()
    assert len(layers_of(plain)) == 2
    assert layers_of(fused) == list(fused.base_model.layers)


def test_a_batch_without_a_place_learns_nothing() -> None:
    _, fused = pair()
    found = learnt_at(fused, torch.randint(0, 50, (2, 7)), places=torch.tensor([], dtype=torch.int64))
    assert found["states"].shape == (0, 24)
    assert not any(gradient.any() for gradient in found.values())


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
    assert not picks_places(model.base_model)


@pytest.mark.parametrize(
    ("device", "dtype", "suits"),
    [("cpu", torch.float32, True), ("cpu", torch.bfloat16, False), ("cuda", torch.float32, False)],
)
def test_only_full_precision_on_a_cpu_is_fused(device: str, dtype: torch.dtype, suits: bool) -> None:
    assert suits_fused_layers(device=torch.device(device), dtype=dtype) is suits
