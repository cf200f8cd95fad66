"""The processes that take every step of a run together, as `torchrun` or `--processes` starts them.

Each holds the whole plan and learns from its share of each batch; what all must know alike (how many answer
tokens a batch has, whether memory ran out, what was asked) is agreed at fixed places. The first process
speaks and writes for all. Nothing here touches a gradient: `trainer/core/exchange.py` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # it is public all the same
from torch.distributed.rendezvous import rendezvous

from trainer.config.job import Parallel
from trainer.core.batching import Indices
from trainer.errors import ConfigError, PeerLost
from trainer.ranks import RENDEZVOUS, launch_error, local_rank, num_ranks

T = TypeVar("T")

# A process that is frozen or cut off is given up after this long; one that died, at once.
EXCHANGE_TIMEOUT = timedelta(minutes=10)
# The first process may tokenise for hours while the others wait; when it dies, their launcher ends them.
TURN_TIMEOUT = timedelta(days=1)
NO_LIMIT = 1 << 62


class Team:
    """All processes of a run; one alone unless a store is given. `rank` counts from 0."""

    def __init__(self, *, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._num_turns = 0

    @property
    def is_first(self) -> bool:
        """True for the process that speaks and writes."""
        return self.rank == 0

    def share(self, indices: Indices) -> Indices:
        """This process's rows of a batch: every size-th. Rows come longest first, so shares weigh alike."""
        return indices[self.rank :: self.size]

    def sums(self, *values: float) -> list[float]:
        """Each value's sum over all processes; counts below 2**53 are exact."""
        return self._reduced(values, dtype=torch.float64, how=dist.ReduceOp.SUM)

    def highest(self, value: int) -> int:
        """The largest of all processes' values."""
        return int(self._reduced([value], dtype=torch.int64, how=dist.ReduceOp.MAX)[0])

    def lowest(self, value: int | None) -> int | None:
        """The smallest of all processes' values; None where no process has one."""
        given = NO_LIMIT if value is None else value
        found = int(self._reduced([given], dtype=torch.int64, how=dist.ReduceOp.MIN)[0])
        return None if found == NO_LIMIT else found

    def from_first(self, work: Callable[[], T]) -> T:
        """Do it in the first process alone; every process gets its result."""
        if self.size == 1:
            return work()
        box = [work() if self.is_first else None]
        with _named_losses():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]  # the first process put it there

    def from_each(self, value: T) -> tuple[T, ...]:
        """Every process's value, in order of rank."""
        if self.size == 1:
            return (value,)
        values: list[Any] = [None] * self.size
        with _named_losses():
            dist.all_gather_object(values, value)
        return tuple(values)

    def first_before_others(self, work: Callable[[], T]) -> T:
        """Do it in every process, in the first one before the others: they find what it left on disk."""
        if self.size == 1:
            return work()
        self._num_turns += 1
        key = f"turn-{self._num_turns}"
        if not self.is_first:
            self._await_turn(key)
            return work()
        try:
            result = work()
        except BaseException:
            self._store.set(key, "failed")
            raise
        self._store.set(key, "done")
        return result

    def fails_first(self) -> bool:
        """True for the one process that may say why the run ends badly."""
        return self._store is None or self._store.add("failed", 1) == 1

    def _await_turn(self, key: str) -> None:
        with _named_losses():
            self._store.wait([key], TURN_TIMEOUT)
        if self._store.get(key) != b"done":
            raise PeerLost("The first process of this run failed.")

    def _reduced(self, values: Any, *, dtype: torch.dtype, how: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=dtype)
        with _named_losses():
            dist.all_reduce(tensor, op=how)
        return tensor.tolist()


ALONE = Team()


@contextmanager
def joined(parallel: Parallel, *, device: torch.device) -> Iterator[tuple[Team, torch.device]]:
    """All processes of this run and this one's device, inside this block.

    Of several processes one alone raises what went wrong; the others, and all where one was lost, raise
    `PeerLost`. `ConfigError` where several were started for a job that is not to be split.
    """
    if num_ranks() == 1:
        yield ALONE, device
        return
    _check(parallel, device=device)
    own = torch.device("cuda", local_rank()) if device.type == "cuda" else device
    team = _join(own)
    try:
        yield team, own
    except PeerLost:
        raise
    except Exception as error:
        if is_peer_lost(error) or not team.fails_first():
            raise PeerLost(f"Another process of this run ended it: {error}") from error
        raise
    finally:
        dist.destroy_process_group()


def is_peer_lost(error: BaseException) -> bool:
    """True for what an exchange raises where another process is gone or silent."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def _join(device: torch.device) -> Team:
    url = os.environ.get(RENDEZVOUS, "env://")
    try:
        store, rank, size = next(iter(rendezvous(url, timeout=EXCHANGE_TIMEOUT)))
    except ValueError as error:  # torch names the variable that is missing or wrong
        raise launch_error(f"The {num_ranks()} processes of this run cannot meet: {error}.") from error
    store.set_timeout(EXCHANGE_TIMEOUT)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # What is agreed travels between CPUs, so that it does not wait for a card's queue of work.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("exchange", store),
        rank=rank,
        world_size=size,
        timeout=EXCHANGE_TIMEOUT,
    )
    return Team(rank=rank, size=size, store=PrefixStore("team", store))


def _check(parallel: Parallel, *, device: torch.device) -> None:
    if parallel == "none":
        raise ConfigError(
            f"environment.parallel = 'none', but {num_ranks()} processes were started for this job.",
            field="environment.parallel",
            value=parallel,
            remedy="Start one process, or set it to auto, ddp or fsdp.",
        )
    if device.index is not None:
        raise ConfigError(
            f"environment.device = '{device}' names one card for {num_ranks()} processes.",
            field="environment.device",
            value=str(device),
            remedy="Use 'cuda': each process takes a card of its own.",
        )


@contextmanager
def _named_losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"Another process of this run is gone or does not answer: {error}") from error
