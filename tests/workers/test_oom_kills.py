from pathlib import Path

import pytest

from registry.records import JobProblem
from registry.testing import START, make_job
from workers.oom_kills import KIND, max_part_tokens, num_oom_kills


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return tmp_path / "proc"


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    (tmp_path / "cgroup" / "train.slice").mkdir(parents=True)
    return tmp_path / "cgroup"


@pytest.mark.parametrize("name", ["", "train.slice"])
def test_kills_are_counted_in_the_control_group(proc: Path, cgroups: Path, name: str) -> None:
    (proc / "self" / "cgroup").write_text(f"4:memory:/elsewhere\n0::/{name}\n")
    (proc / "vmstat").write_text("oom_kill 9\n")
    (cgroups / name / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert num_oom_kills(proc=proc, cgroups=cgroups) == 2


def test_without_a_group_of_its_own_the_whole_machines_kills_count(proc: Path, cgroups: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    (proc / "vmstat").write_text("nr_free_pages 3\noom_kill 9\n")
    assert num_oom_kills(proc=proc, cgroups=cgroups) == 9


def test_where_nothing_counts_the_number_is_unknown(proc: Path, cgroups: Path) -> None:
    assert num_oom_kills(proc=proc, cgroups=cgroups) is None


def test_parts_are_halved_with_each_death_down_to_one_token() -> None:
    kinds = ["killed", KIND, KIND]
    problems = tuple(JobProblem(kind=kind, message="", attempt=1, at=START) for kind in kinds)
    job = make_job(problems=problems)
    assert max_part_tokens(make_job(), tokens_per_batch=4096, num_processes=1) is None
    assert max_part_tokens(job, tokens_per_batch=4096, num_processes=1) == 1024
    assert max_part_tokens(job, tokens_per_batch=4096, num_processes=2) == 512
    assert max_part_tokens(job, tokens_per_batch=3, num_processes=1) == 1
