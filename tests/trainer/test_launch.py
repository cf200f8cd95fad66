"""Several processes as a supervisor meets them: by --processes and by torchrun, ended together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from registry.manifests import verify
from trainer import launch
from trainer.config.job import JobConfig
from trainer.core.engine import TrainerEngine
from trainer.messages import CheckpointSaved, ChildMessage, Failed, Finished, Progress, parse_line

JobFactory = Callable[..., JobConfig]
Start = Callable[..., subprocess.Popen[bytes]]
LONG = {"num_epochs": 900, "tokens_per_batch": 120}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture
def job_file(job: JobFactory, tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(job(hyperparameters=LONG).model_dump_json())
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def spawn(*command: object) -> subprocess.Popen[bytes]:
        one = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(one)
        return one

    yield spawn
    for one in started:
        for child in (*psutil.Process(one.pid).children(recursive=True),) if one.poll() is None else ():
            child.kill()
        one.kill()
        one.wait()
        for stream in (one.stdin, one.stdout):
            assert stream is not None
            stream.close()


def messages_of(started: subprocess.Popen[bytes]) -> Iterator[ChildMessage]:
    assert started.stdout is not None
    return map(parse_line, started.stdout)


def wait_for(kind: type[Any], messages: Iterator[ChildMessage]) -> Any:
    return next(message for message in messages if isinstance(message, kind))


def ranks_of(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """In order of rank."""
    return sorted(psutil.Process(started.pid).children(), key=lambda one: int(one.environ()["RANK"]))


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_torchrun_learns_what_one_process_does(
    start: Start,
    engine: Callable[..., TrainerEngine],
    job: JobFactory,
    said: list[ChildMessage],
    tmp_path: Path,
    kind: str,
) -> None:
    twice = {"num_epochs": 2}
    engine().run_job(job(hyperparameters=twice, output={"checkpoints_dir": str(tmp_path / "alone")}))
    path = tmp_path / "shared.json"
    path.write_text(job(hyperparameters=twice, environment={"parallel": kind}).model_dump_json())
    started = start("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer", path)
    messages = list(messages_of(started))
    assert started.wait() == 0
    expected = [message.loss for message in said if isinstance(message, Progress)]
    assert len(expected) >= 6
    losses = [message.loss for message in messages if isinstance(message, Progress)]
    assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.integration
def test_a_pause_down_the_pipe_ends_all_with_one_checkpoint(start: Start, job_file: Path) -> None:
    started = start("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer", job_file)
    messages = messages_of(started)
    wait_for(Progress, messages)
    assert started.stdin is not None
    started.stdin.write(json.dumps({"command": "pause"}).encode() + b"\n")
    started.stdin.flush()
    saved, finished = [message for message in messages if isinstance(message, CheckpointSaved | Finished)]
    assert started.wait() == 0
    assert finished.result.state == "paused"
    assert verify(Path(saved.path)).step == finished.result.step > 0


@pytest.mark.integration
def test_one_that_is_killed_takes_the_others_and_the_launcher_with_it(start: Start, job_file: Path) -> None:
    started = start("trainer", job_file, "--processes=2")
    messages = messages_of(started)
    wait_for(Progress, messages)
    first, second = ranks_of(started)
    assert os.getpgid(first.pid) == os.getpgid(second.pid) == started.pid  # one kill reaches all
    second.kill()
    assert started.wait(timeout=60) == launch.SIGNALLED + signal.SIGKILL
    assert not first.is_running()
    assert not any(isinstance(message, Failed | Finished) for message in messages)


@pytest.mark.integration
def test_processes_whose_launcher_is_killed_do_not_train_on(start: Start, job_file: Path) -> None:
    started = start("trainer", job_file, "--processes=2")
    wait_for(Progress, messages_of(started))
    ranks = ranks_of(started)
    started.kill()
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert (len(gone), alive) == (2, [])


class Fake:
    """A process that ends with its code when it is asked often enough."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    def poll(self) -> int | None:
        return self._code


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([0, 3], 3), ([-9, 9], 137), ([None, 5], 5), ([9, 5], 9)]
)
def test_the_first_that_fails_gives_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, codes: list[int | None], expected: int
) -> None:
    monkeypatch.setattr(launch, "FAREWELL_SECONDS", 0.0)
    children: Any = [Fake(code) for code in codes]
    assert launch._await(children) == expected
