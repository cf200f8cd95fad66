"""Several processes, one run: the same loss, the same weights, the same end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.config.job import JobConfig
from trainer.core.engine import TrainerEngine
from trainer.core.parallel import ALONE, joined
from trainer.errors import ConfigError
from trainer.messages import (
    CheckpointSaved,
    ChildMessage,
    Failed,
    Finished,
    Progress,
    Started,
    TrainingResult,
    Warned,
    parse_line,
)
from trainer.process import EXIT_CODES
from trainer.testing import ScriptedControl

pytestmark = pytest.mark.integration

MakeEngine = Callable[..., TrainerEngine]
JobFactory = Callable[..., JobConfig]
ROOT = Path(__file__).parents[3]
KINDS = ["ddp", "fsdp"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ended:
    """How each process ended, and what each said, in order of rank."""

    codes: list[int]
    said: list[list[ChildMessage]]

    @property
    def result(self) -> TrainingResult:
        (finished,) = self.of(Finished)
        return finished.result

    @property
    def losses(self) -> list[float]:
        return [progress.loss for progress in self.of(Progress)]

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.said[0] if isinstance(message, kind)]


RunRanks = Callable[..., Ended]


@pytest.fixture(scope="session")
def forks() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("ranks.py"))]
    with subprocess.Popen(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdin=-1, stdout=-1, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def run_ranks(forks: subprocess.Popen[str], tmp_path: Path) -> RunRanks:
    numbers = count()

    def run(config: JobConfig, *, size: int = 2, fault: str = "", fault_rank: int = 1) -> Ended:
        directory = tmp_path / f"ranks-{next(numbers)}"
        directory.mkdir()
        job = directory / "job.json"
        job.write_text(config.model_dump_json())
        asked = {"job": str(job), "size": size, "directory": str(directory)}
        assert forks.stdin is not None
        assert forks.stdout is not None
        forks.stdin.write(json.dumps({**asked, "fault": fault, "fault_rank": fault_rank}) + "\n")
        forks.stdin.flush()
        codes = json.loads(forks.stdout.readline())
        said = [(directory / f"{rank}.jsonl").read_bytes().splitlines() for rank in range(size)]
        return Ended(codes=codes, said=[list(map(parse_line, lines)) for lines in said])

    return run


def differences(one: TrainingResult, other: TrainingResult) -> float:
    """The largest of any weight and of any moment."""
    names = ("model.safetensors", "training_state.safetensors")
    largest = 0.0
    for name in names:
        ours, theirs = (load_file(Path(str(result.final_checkpoint)) / name) for result in (one, other))
        assert ours.keys() == theirs.keys()
        largest = max(largest, *(float((ours[key] - theirs[key]).abs().max()) for key in ours))
    return largest


@pytest.fixture
def alone(engine: MakeEngine, job: JobFactory, said: list[ChildMessage], tmp_path: Path) -> Ended:
    """The same job in one process, to its end."""
    engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "alone")}))
    return Ended(codes=[0], said=[list(said)])


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(
    run_ranks: RunRanks, job: JobFactory, alone: Ended, kind: str
) -> None:
    both = run_ranks(job(environment={"parallel": kind}))
    assert both.codes == [0, 0]
    assert both.said[1] == []
    assert both.losses == pytest.approx(alone.losses, abs=1e-5)
    assert both.result.num_tokens == alone.result.num_tokens
    assert differences(both.result, alone.result) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_fewer_rows_than_processes_is_learnt_all_the_same(
    run_ranks: RunRanks,
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    tmp_path: Path,
    kind: str,
) -> None:
    chosen = {"tokens_per_batch": 1, "max_steps": 4, "learning_rate": 1e-3}
    result = engine().run_job(job(hyperparameters=chosen, output={"checkpoints_dir": str(tmp_path / "one")}))
    both = run_ranks(job(hyperparameters=chosen, environment={"parallel": kind}))
    assert both.losses == pytest.approx([one.loss for one in said if isinstance(one, Progress)], abs=1e-5)
    assert differences(both.result, result) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_what_several_began_one_goes_on_with_and_the_other_way_round(
    run_ranks: RunRanks,
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    alone: Ended,
    kind: str,
) -> None:
    config = job(environment={"parallel": kind})
    began = run_ranks(config, fault="stopped")
    assert (began.codes, began.result.state, began.result.step) == ([0, 0], "stopped", 2)
    said.clear()
    going_on = engine(control=ScriptedControl(after_steps=1)).run_job(config)
    assert [one.resumed_from_step for one in said if isinstance(one, Started)] == [2]
    assert going_on.step == 3
    ended = run_ranks(config)
    assert [one.resumed_from_step for one in ended.of(Started)] == [3]
    assert differences(ended.result, alone.result) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_as_before_go_on_to_the_same_bits(
    run_ranks: RunRanks, job: JobFactory, tmp_path: Path, kind: str
) -> None:
    config = job(environment={"parallel": kind})
    whole = run_ranks(
        job(environment={"parallel": kind}, output={"checkpoints_dir": str(tmp_path / "whole")})
    )
    assert run_ranks(config, fault="paused").result.state == "paused"
    assert differences(run_ranks(config).result, whole.result) == 0


@pytest.mark.parametrize("fault", ["out_of_memory", "out_of_memory_backward"])
@pytest.mark.parametrize(("fault_rank", "words"), [(0, "Memory ran out at"), (1, "in another process")])
def test_memory_that_runs_out_in_one_of_several_replicas_splits_the_step_in_all(
    run_ranks: RunRanks, job: JobFactory, alone: Ended, fault: str, fault_rank: int, words: str
) -> None:
    both = run_ranks(job(environment={"parallel": "ddp"}), fault=fault, fault_rank=fault_rank)
    assert both.codes == [0, 0]
    assert words in both.of(Warned)[0].message
    assert both.result.num_tokens == alone.result.num_tokens
    assert both.losses == pytest.approx(alone.losses, abs=1e-5)
    assert differences(both.result, alone.result) < 1e-5


def test_a_row_that_does_not_fit_in_one_of_several_replicas_ends_all_with_the_reason(
    run_ranks: RunRanks, job: JobFactory
) -> None:
    ended = run_ranks(job(environment={"parallel": "ddp"}), fault="out_of_memory_early")
    assert ended.codes == [EXIT_CODES["peer_lost"], EXIT_CODES["out_of_memory"]]
    (failed,) = (message for message in ended.said[1] if isinstance(message, Failed))
    assert "does not fit in memory" in failed.message
    assert ended.of(Failed) == []


def test_memory_that_runs_out_while_shards_are_exchanged_ends_all_with_the_reason(
    run_ranks: RunRanks, job: JobFactory
) -> None:
    ended = run_ranks(job(environment={"parallel": "fsdp"}), fault="out_of_memory_early")
    assert ended.codes == [EXIT_CODES["peer_lost"], EXIT_CODES["out_of_memory"]]
    assert ended.of(Failed) == []
    (failed,) = ended.said[1]
    assert isinstance(failed, Failed)
    assert "model that is sharded" in failed.message


def losses_on(suite: Path) -> dict[str, Any]:
    """Measure after each step, if half of the time suffices."""
    return {
        "validation_path": str(suite),
        "num_validation_rows": 8,
        "validate_every_seconds": 0,
        "max_validation_share": 0.5,
    }


def measured(said: list[ChildMessage]) -> dict[int, tuple[float, ...]]:
    """Losses and accuracies, by step."""
    found = [one.micro_evaluation for one in said if isinstance(one, Progress)]
    return {
        one.step: (
            one.validation_loss.value,
            one.training_loss.value,
            one.validation_accuracy.value,
            one.training_accuracy.value,
        )
        for one in found
        if one is not None and one.validation_loss and one.training_loss
        if one.validation_accuracy and one.training_accuracy
    }


@pytest.mark.parametrize("kind", KINDS)
def test_several_measure_on_held_out_rows_what_one_does(
    run_ranks: RunRanks,
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    suite: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    monitoring, chosen = losses_on(suite), {"num_epochs": 4}
    one = {"checkpoints_dir": str(tmp_path / "one")}
    result = engine().run_job(job(monitoring=monitoring, hyperparameters=chosen, output=one))
    both = run_ranks(job(monitoring=monitoring, hyperparameters=chosen, environment={"parallel": kind}))
    assert both.codes == [0, 0]
    assert not both.of(Warned)
    ours, theirs = measured(both.said[0]), measured(said)
    common = sorted(ours.keys() & theirs.keys())
    assert len(common) >= 3
    for step in common:
        assert ours[step] == pytest.approx(theirs[step], abs=1e-5)
    assert differences(both.result, result) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault_rank", [0, 1])
def test_where_one_has_no_rows_to_measure_by_none_measures(
    run_ranks: RunRanks, job: JobFactory, suite: Path, kind: str, fault_rank: int
) -> None:
    config = job(monitoring=losses_on(suite), environment={"parallel": kind})
    ended = run_ranks(config, fault="without_suite", fault_rank=fault_rank)
    assert ended.codes == [0, 0]
    (warned,) = ended.of(Warned)
    assert ("no such file" if fault_rank == 0 else "another process of this run") in warned.message
    assert measured(ended.said[0]) == {}


def test_memory_that_runs_out_while_one_of_several_replicas_measures_ends_the_measuring_of_all(
    run_ranks: RunRanks, job: JobFactory, suite: Path
) -> None:
    config = job(monitoring=losses_on(suite), environment={"parallel": "ddp"})
    ended = run_ranks(config, fault="out_of_memory_measuring")
    assert ended.codes == [0, 0]
    (warned,) = ended.of(Warned)
    assert "memory ran out while measuring" in warned.message


def test_memory_that_runs_out_while_shards_measure_ends_all_with_what_helps(
    run_ranks: RunRanks, job: JobFactory, suite: Path
) -> None:
    config = job(monitoring=losses_on(suite), environment={"parallel": "fsdp"})
    ended = run_ranks(config, fault="out_of_memory_measuring")
    assert ended.codes == [EXIT_CODES["peer_lost"], EXIT_CODES["out_of_memory"]]
    (failed,) = ended.said[1]
    assert isinstance(failed, Failed)
    assert "Held-out rows were measured" in failed.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_no_number_in_one_ends_all_and_one_says_so(
    run_ranks: RunRanks, job: JobFactory, kind: str
) -> None:
    ended = run_ranks(job(environment={"parallel": kind}), fault="diverged")
    said = [message for messages in ended.said for message in messages if isinstance(message, Failed)]
    assert [failed.kind for failed in said] == ["diverged"]
    assert sorted(ended.codes) == sorted([EXIT_CODES["diverged"], EXIT_CODES["peer_lost"]])
    assert not any(isinstance(message, CheckpointSaved) for message in ended.said[0])


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_killed_ends_the_other_without_a_word(
    run_ranks: RunRanks, job: JobFactory, kind: str
) -> None:
    ended = run_ranks(job(environment={"parallel": kind}), fault="killed")
    assert ended.codes == [EXIT_CODES["peer_lost"], -9]
    assert not any(isinstance(message, Failed | Finished) for message in ended.said[0])


def test_what_is_wrong_with_the_rows_is_said_once(
    run_ranks: RunRanks, job: JobFactory, write_rows: Callable[..., Path]
) -> None:
    rows = write_rows([{"prompt": "a", "completion": ""}], name="bad.jsonl")
    ended = run_ranks(job(data={"path": str(rows)}))
    said = [message for messages in ended.said for message in messages]
    assert [failed.kind for failed in said if isinstance(failed, Failed)] == ["data"]
    assert ended.codes[0] == EXIT_CODES["data"]


def test_a_job_that_is_not_to_be_split_is_refused_by_several(
    job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started"), joined("none", device=CPU):
        pass
    with pytest.raises(ConfigError, match="one card for 2"), joined("ddp", device=torch.device("cuda:1")):
        pass


def test_one_process_is_a_team_of_its_own() -> None:
    with joined("fsdp", device=CPU) as (team, device):
        assert (team, device) == (ALONE, CPU)
    assert ALONE.sums(1, 2.5) == [1, 2.5]
    assert ALONE.lowest(None) is None
