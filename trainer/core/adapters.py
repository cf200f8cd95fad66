"""LoRA by PEFT: adapters learn beside weights that stay, and are merged for whoever reads a checkpoint.

E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. The model's class and the
names of its other weights stay as they are. Merging makes new tensors: the weights that stay never change by
rounding, so a run goes on to the bit from its parent and its adapters.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.adapter import AdapterConfig
from trainer.errors import ConfigError

FIELD = "hyperparameters.adapter"
NAME = "default"
BASE = ".base_layer."


def add_adapter(model: Any, *, settings: AdapterConfig, seed: int, dtype: torch.dtype) -> None:
    """Let adapters alone learn, in place. `dtype` is that of the arithmetic.

    In bfloat16 the matrices that stay are kept in it: each product rounds them so anyway.
    `ConfigError` where PEFT is missing or no layer has such a name.
    """
    lora = _peft()
    targets = _targets(model, settings=settings)
    options = lora.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        bias="none",
    )
    # What A begins with is the seed's alone, whatever was drawn before and in whichever process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora.inject_adapter_in_model(options, model, adapter_name=NAME)
    if dtype != torch.float32:
        for layer in _adapted(model).values():
            layer.base_layer.weight.data = layer.base_layer.weight.data.to(dtype)


def merged_state(model: Any, *, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state as it would be without adapters: W + alpha / rank * B A under W's own name, float32."""
    adapted = _adapted(model)
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, is_base, leaf = name.partition(BASE)
        if is_base:
            merged[f"{owner}.{leaf}"] = _merged(tensor, layer=adapted[owner], leaf=leaf)
        elif name.split(".lora_")[0] not in adapted:
            merged[name] = tensor
    return merged


def _merged(tensor: Tensor, *, layer: Any, leaf: str) -> Tensor:
    if leaf != "weight":
        return tensor
    with torch.no_grad():
        merged: Tensor = tensor.float() + layer.get_delta_weight(NAME).float()
    return merged


def _adapted(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}


def _targets(model: Any, *, settings: AdapterConfig) -> list[str]:
    """Full names of the layers to adapt; the output projection may be one with the embedding."""
    head = model.get_output_embeddings()
    layers = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]
    wanted = settings.target_modules
    if wanted is None:
        return layers
    known = sorted({name.rpartition(".")[2] for name in layers})
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"{FIELD}.target_modules: {name!r} is no linear layer of this model.",
                field=f"{FIELD}.target_modules",
                value=list(wanted),
                remedy=f"It has {', '.join(known)}.",
            )
    return [name for name in layers if name.rpartition(".")[2] in wanted]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"{FIELD} asks for LoRA, but PEFT cannot be imported: {error}.",
            field=FIELD,
            remedy="Install it on the training host: pip install 'tandem[lora]'.",
        ) from error
    return peft
