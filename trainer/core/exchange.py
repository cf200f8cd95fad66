"""How the gradients of several processes become one.

`Replicas` hold the whole model each and add their gradients up once a step, as PyTorch's DDP does (Li et
al. 2020, "PyTorch Distributed"), but after the backward pass instead of during it: a process whose memory
ran out then still has time to say so, and all take the step again in smaller parts. `Shards` hold a part of
each weight, gradient and moment (FSDP2; Zhao et al. 2023, "PyTorch FSDP") and fetch a layer's weights when
it is computed, so that every process must compute as often as every other.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.config.job import Parallel
from trainer.core.memory import is_out_of_memory
from trainer.core.parallel import Team
from trainer.errors import OutOfMemory

EMPTY = torch.empty(0)
BUCKET_VALUES = 1 << 23  # 32 MB of float32: beyond that a message is hardly faster


class Exchange(Protocol):
    """Where a step meets the other processes."""

    def num_parts(self, own: int) -> int:
        """How many parts this process must compute, which has rows for `own`."""
        ...

    def compute(self, function: Callable[[], Tensor]) -> Tensor:
        """Call what runs the model."""
        ...

    def is_abandoned(self, *, is_out_of_memory: bool) -> bool:
        """True where the part that was just computed goes no further."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this process's part of the loss."""
        ...

    def add_up(self) -> None:
        """After the last backward pass of a step: every process's gradient is that of all."""
        ...


class Replicas:
    """Whole models that add their gradients up.

    The room for a message is taken before the first step: when the others wait for a message it is too late
    to take the step again, so nothing is to be asked for then.
    """

    def __init__(self, model: nn.Module, *, team: Team) -> None:
        self._team = team
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._room = _room_for_message(self._trained) if team.size > 1 else EMPTY

    def compute(self, function: Callable[[], Tensor]) -> Tensor:
        """Nobody else is needed."""
        return function()

    def num_parts(self, own: int) -> int:
        """No more than it has rows for."""
        return own

    def is_abandoned(self, *, is_out_of_memory: bool) -> bool:
        """The others are asked when the step is computed."""
        return is_out_of_memory

    def backward(self, loss: Tensor) -> None:
        """Nothing is exchanged yet."""
        loss.backward()

    def add_up(self) -> None:
        """In few large messages, a large gradient as it is. A process without rows adds zeros."""
        if self._team.size == 1:
            return
        for bucket in _buckets(self._trained):
            gradients = [_gradient_of(parameter) for parameter in bucket]
            if len(gradients) == 1:
                dist.all_reduce(gradients[0])
                continue
            message = self._room[: sum(gradient.numel() for gradient in gradients)]
            torch.cat([gradient.flatten() for gradient in gradients], out=message)
            dist.all_reduce(message)
            sums = message.split([gradient.numel() for gradient in gradients])
            for gradient, total in zip(gradients, sums, strict=True):
                gradient.copy_(total.view_as(gradient))


class Shards:
    """Parts of one model; layer by layer it is put together, used and dropped."""

    def __init__(self, model: Any, *, team: Team, device: torch.device) -> None:
        """Shard `model` in place; each process keeps its part on `device`."""
        mesh = init_device_mesh(device.type, (team.size,))
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh)
        # The outermost module of all: output projection and embedding may be one tensor, and the loss
        # calls both by themselves.
        self._scope = _Scope(model)
        fully_shard(self._scope, mesh=mesh)
        self._team = team

    def num_parts(self, own: int) -> int:
        """As many as any process has: who has fewer rows computes a part that counts nothing."""
        return self._team.highest(own)

    def compute(self, function: Callable[[], Tensor]) -> Tensor:
        """With the weights that no layer owns put together. `OutOfMemory` ends the run of all."""
        try:
            value: Tensor = self._scope(function)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory("forward") from error
        return value

    def is_abandoned(self, *, is_out_of_memory: bool) -> bool:
        """Never: where memory runs out, the run ended."""
        return is_out_of_memory

    def backward(self, loss: Tensor) -> None:
        """FSDP gives the mean over processes, so the sum is asked of it. `OutOfMemory` on the way."""
        try:
            (loss * self._team.size).backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory("backward") from error

    def add_up(self) -> None:
        """FSDP did, with each backward pass."""


def layers_of(model: Any) -> list[nn.Module]:
    """A transformers model's decoder layers: of classes that it says must not be split, or their kinds."""
    names = set(model._no_split_modules or ())
    return [
        module for module in model.modules() if any(kind.__name__ in names for kind in type(module).__mro__)
    ]


def exchange_for(model: Any, *, parallel: Parallel, team: Team, device: torch.device) -> Exchange:
    """As the job's settings have it; with `fsdp` the model is sharded in place."""
    if is_sharded(parallel, team=team):
        return Shards(model, team=team, device=device)
    return Replicas(model, team=team)


def is_sharded(parallel: Parallel, *, team: Team) -> bool:
    """True where each process is to hold a part of the model."""
    return parallel == "fsdp" and team.size > 1


def clip_gradients(model: nn.Module, *, max_norm: float) -> Tensor:
    """Scale the gradient down to `max_norm`; its norm before that, over all processes' parts."""
    return whole(nn.utils.clip_grad_norm_(model.parameters(), max_norm, foreach=True))


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes' parts; every process must ask. Others stay as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parted_like(tensor: Tensor, *, parameter: Tensor) -> Tensor:
    """A whole tensor as this process holds `parameter`: its part of it, on the same device."""
    moved = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.ndim == 0:
        return moved
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


def put_together(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Named tensors, whole; those that are one stay one. Every process must ask.

    What had to be fetched from others is moved off the device one by one, or let go unless `keep`.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) in found:
            continue
        value = whole(tensor.detach())
        found[id(tensor)] = value if not isinstance(tensor, DTensor) else value.cpu() if keep else EMPTY
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Consecutive ones, each bucket of at most `BUCKET_VALUES` numbers or a single parameter."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(one.numel() for one in (*bucket, parameter)) > BUCKET_VALUES:
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket


def _room_for_message(parameters: Sequence[nn.Parameter]) -> Tensor:
    sizes = [sum(one.numel() for one in bucket) for bucket in _buckets(parameters) if len(bucket) > 1]
    return torch.empty(max(sizes, default=0), dtype=parameters[0].dtype, device=parameters[0].device)


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _out_of_memory(direction: str) -> OutOfMemory:
    return OutOfMemory(
        f"Memory ran out in the {direction} pass of a model that is sharded: the others wait for this "
        "process's weights, so the step cannot be taken again.",
        remedy="Lower tokens_per_batch, or set environment.parallel to ddp.",
    )


class _Scope(nn.Module):
    """Runs anything inside a module's forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        return function()
