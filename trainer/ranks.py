"""Which of a run's processes this one is, as `torchrun` and `trainer.launch` tell it. Loads no torch."""

from __future__ import annotations

import os

# Where the processes of `--processes` meet: a file, so that no port can be taken by another.
RENDEZVOUS = "TRAINER_RENDEZVOUS"


def rank() -> int:
    """From 0; the first one speaks and writes."""
    return int(os.environ.get("RANK", "0")) if num_ranks() > 1 else 0


def local_rank() -> int:
    """The same among the processes on this host: the number of its card."""
    return int(os.environ.get("LOCAL_RANK", str(rank())))


def num_ranks() -> int:
    """1 unless a launcher started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))
