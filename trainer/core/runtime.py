"""The torch settings of a run, put back when it ends: device, threads, determinism, random state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.errors import ConfigError

# The module answers to this name through a property that its annotations do not mention.
_filling: Any = torch.utils.deterministic

DtypeName = Literal["auto", "float32", "bfloat16"]


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; `ConfigError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"environment.device = {name!r}: torch sees {torch.cuda.device_count()} CUDA devices.",
            field="environment.device",
            value=name,
            remedy="Check the driver with nvidia-smi, or use 'auto'.",
        )
    return device


def choose_dtype(name: DtypeName, *, device: torch.device) -> torch.dtype:
    """What matrix products are computed in."""
    if name == "auto":
        is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if is_fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def wants_gradient_checkpointing(name: Literal["auto", "on", "off"], *, device: torch.device) -> bool:
    """True where a layer's activations are computed twice instead of kept."""
    return name == "on" or (name == "auto" and device.type == "cuda")


def overlaps_writing(setting: Literal["auto", "on", "off"], *, num_processes: int) -> bool:
    """True where steps go on while a checkpoint is written. Several processes write it together."""
    return setting != "off" and num_processes == 1


@contextmanager
def reproducible(*, device: torch.device, num_threads: int, seed: int) -> Iterator[None]:
    """Inside this block torch has these threads and seed, and on a CPU deterministic algorithms alone."""
    threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    was_filling = _filling.fill_uninitialized_memory
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.set_num_threads(num_threads)
            torch.use_deterministic_algorithms(was_deterministic or device.type == "cpu")
            _filling.fill_uninitialized_memory = False  # a debugging aid that costs time
            torch.manual_seed(seed)
            yield
        finally:
            _filling.fill_uninitialized_memory = was_filling
            torch.use_deterministic_algorithms(was_deterministic)
            torch.set_num_threads(threads)


def random_state(device: torch.device) -> dict[str, str]:
    """States of the generators that a step may draw from, in hex."""
    return {name: state.numpy().tobytes().hex() for name, state in generator_states(device).items()}


def set_random_state(states: dict[str, str], *, device: torch.device) -> None:
    """Put back what `random_state` gave."""
    tensors = {
        name: torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
        for name, digits in states.items()
    }
    set_generator_states(tensors, device=device)


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The same as tensors: cheap enough to be taken before every step."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: Mapping[str, Tensor], *, device: torch.device) -> None:
    """Put back what `generator_states` gave."""
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(state, device)


@contextmanager
def only_looking(model: Any) -> Iterator[None]:
    """Inside this block nothing is dropped out and no gradient is kept."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
