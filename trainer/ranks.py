"""Which of a run's processes this one is, as `torchrun` and `trainer.launch` tell it. Loads no torch."""

from __future__ import annotations

import os

from trainer.errors import ConfigError

# Where the processes of `--processes` meet: a file, so that no port can be taken by another.
RENDEZVOUS = "TRAINER_RENDEZVOUS"


def check_ranks() -> None:
    """`ConfigError` where the variables of a launcher are no numbers, or do not agree."""
    if num_ranks() == 1:
        return
    if "RANK" not in os.environ:
        raise launch_error(f"WORLD_SIZE is {num_ranks()}, but RANK is not set.")
    if rank() >= num_ranks():
        raise launch_error(f"RANK is {rank()}, but the highest of WORLD_SIZE = {num_ranks()} is one less.")
    local_rank()


def rank() -> int:
    """From 0; the first one speaks and writes."""
    return _number("RANK", default=0, lowest=0) if num_ranks() > 1 else 0


def local_rank() -> int:
    """The same among the processes on this host: the number of its card."""
    return _number("LOCAL_RANK", default=rank(), lowest=0)


def num_ranks() -> int:
    """1 unless a launcher started several."""
    return _number("WORLD_SIZE", default=1, lowest=1)


def launch_error(problem: str) -> ConfigError:
    """What a launcher's variables say cannot be; which of them stands in `problem`."""
    return ConfigError(
        problem,
        field="environment.parallel",
        remedy="Start the processes with --processes or torchrun, which set RANK and WORLD_SIZE; for one "
        "process leave both unset.",
    )


def _number(name: str, *, default: int, lowest: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = lowest - 1
    if number < lowest:
        raise launch_error(f"{name} is {text!r}: it is a number, {lowest} or more.")
    return number
