"""How often the kernel has killed a process for want of memory, and what such a death of a trainer means.

The kernel gives no reason with its SIGKILL: a trainer that ran out of a container's memory dies like one
that an operator killed. It counts such kills, though. Going on unchanged would meet the same batch with the
same memory; going on in smaller parts on a mere suspicion would round otherwise than the run did so far.
"""

from __future__ import annotations

import signal
from pathlib import Path

from registry.records import TrainingJob

KIND = "out_of_memory_killed"
KILLED_CODES = (-signal.SIGKILL, 128 + signal.SIGKILL)  # of the trainer, and as its launcher says it
COUNTER = "oom_kill"


def num_oom_kills(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """In this process's control group and below it, else on the whole machine; None where neither is told."""
    for path in (*_own_groups(proc, cgroups=cgroups), proc / "vmstat"):
        found = _counter(path)
        if found is not None:
            return found
    return None


def is_oom_kill(return_code: int | None, *, before: int | None, after: int | None) -> bool:
    """True where a trainer died of SIGKILL and the count rose while it ran."""
    return return_code in KILLED_CODES and before is not None and after is not None and after > before


def max_part_tokens(job: TrainingJob, *, tokens_per_batch: int, num_processes: int) -> int | None:
    """A limit on the parts of a step that halves with each such death; None where there was none."""
    num_deaths = sum(problem.kind == KIND for problem in job.problems)
    return max(1, tokens_per_batch // num_processes >> num_deaths) if num_deaths else None


def _own_groups(proc: Path, *, cgroups: Path) -> list[Path]:
    """Version 2 of control groups has one line, `0::/its/path`; inside a container that is `/`."""
    lines = _lines(proc / "self" / "cgroup")
    names = [line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")]
    return [cgroups / name / "memory.events" for name in names]


def _counter(path: Path) -> int | None:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == COUNTER and value.isdigit():
            return int(value)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
