"""LoRA by PEFT: adapters learn beside weights that stay, and are merged for whoever reads a checkpoint.

E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. The model's class and the
names of its other weights stay as they are. Merging makes new tensors: the weights that stay never change by
rounding, so a run goes on to the bit from its parent and its adapters.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.adapter import AdapterConfig
from trainer.config.job import ADAPTER
from trainer.core.memory import is_out_of_memory
from trainer.core.models import copied
from trainer.errors import ConfigError

NAME = "default"
BASE = ".base_layer."
LORA = ".lora_"


def add_adapter(model: Any, *, settings: AdapterConfig, seed: int, dtype: torch.dtype) -> None:
    """Let adapters alone learn, in place. `dtype` is that of the arithmetic.

    In bfloat16 the matrices that stay are kept in it: each product rounds them so anyway.
    `ConfigError` where PEFT is missing or cannot adapt the model, or no layer has such a name.
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
        with _refused(model, settings=settings):
            lora.inject_adapter_in_model(options, model, adapter_name=NAME)
    if dtype != torch.float32:
        for layer in _adapted(model).values():
            layer.base_layer.weight.data = layer.base_layer.weight.data.to(dtype)


def merged_state(
    model: Any, *, state: Mapping[str, Tensor], dtype: torch.dtype, copies: bool = False
) -> dict[str, Tensor]:
    """A model's state as it would be without adapters: W + alpha / rank * B A under W's own name.

    Weights that adapters change are summed in float32 one by one and go straight into the computer's memory
    in `dtype`, that they are saved in: on the device lies no more than one. The others are copied there too
    where `copies` asks for it, and are the model's own else.
    """
    adapted = _adapted(model)
    names = {name: name.replace(BASE, ".") for name in state if name.split(LORA)[0] not in adapted}
    merged = {name for name in names if name.endswith(f"{BASE}weight")}
    rest = {name: tensor for name, tensor in state.items() if name in names.keys() - merged}
    kept = copied(rest, dtype=dtype) if copies else rest
    return {
        plain: _merged(state[name], layer=adapted[name.partition(BASE)[0]], dtype=dtype)
        if name in merged
        else kept[name]
        for name, plain in names.items()
    }


def _merged(tensor: Tensor, *, layer: Any, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        # What is added to is new each time, so the sum needs no room of its own.
        merged: Tensor = layer.get_delta_weight(NAME).float().add_(tensor.float())
        return merged.to("cpu", dtype)


def _adapted(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}


def _targets(model: Any, *, settings: AdapterConfig) -> list[str]:
    """Full names of the layers to adapt; the output projection may be one with the embedding."""
    head = model.get_output_embeddings()
    layers = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]
    if not layers:
        raise _not_adaptable(
            f"{_family(model)} has no linear layer beside its output (a Conv1D is none)", settings=settings
        )
    wanted = settings.target_modules
    if wanted is None:
        return layers
    known = sorted({name.rpartition(".")[2] for name in layers})
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"{ADAPTER}.target_modules: {name!r} is no linear layer of this model.",
                field=f"{ADAPTER}.target_modules",
                value=list(wanted),
                remedy=f"It has {', '.join(known)}.",
            )
    return [name for name in layers if name.rpartition(".")[2] in wanted]


@contextmanager
def _refused(model: Any, *, settings: AdapterConfig) -> Iterator[None]:
    """What PEFT says of a model that it cannot adapt is the trainer's own error; lack of memory is not."""
    try:
        yield
    except Exception as error:  # PEFT has no root for its own: ValueError, TypeError, RuntimeError, ...
        if is_out_of_memory(error):
            raise
        raise _not_adaptable(f"PEFT cannot adapt {_family(model)}: {error}", settings=settings) from error


def _family(model: Any) -> str:
    return f"{type(model).__name__} (family {model.config.model_type})"


def _not_adaptable(problem: str, *, settings: AdapterConfig) -> ConfigError:
    return ConfigError(
        f"{ADAPTER}: {problem}.",
        field=ADAPTER,
        value=settings.model_dump(mode="json"),
        remedy="Leave the adapter out, or take a model of linear layers, such as Qwen3.",
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"{ADAPTER} asks for LoRA, but PEFT cannot be imported: {error}.",
            field=ADAPTER,
            remedy="Install it on the training host: pip install 'tandem[lora]'.",
        ) from error
    return peft
