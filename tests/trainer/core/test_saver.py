"""Checkpoints written beside the steps that follow: the same bits, one at a time, announced when whole."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.manifests import verify
from trainer.config.job import JobConfig
from trainer.core import run as runs
from trainer.core.checkpoints import Checkpoint, latest_valid
from trainer.core.engine import TrainerEngine
from trainer.core.run import Run
from trainer.errors import DiskFull, Diverged
from trainer.messages import CheckpointSaved, ChildMessage, Progress
from trainer.testing import ScriptedControl

MakeEngine = Callable[..., TrainerEngine]
JobFactory = Callable[..., JobConfig]
EVERY_SECOND = {"checkpoint_every_steps": 2}
MAX_WAIT_SECONDS = 30
# Killed by itself when the second checkpoint has its files but no manifest.
DIE_WHILE_WRITING = """
import json, os, signal, sys
from trainer.config.job import check_job
from trainer.core import checkpoints
from trainer.core.engine import TrainerEngine

seal = checkpoints.write_manifest
def die(directory, *, manifest):
    if manifest.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(directory, manifest=manifest)
checkpoints.write_manifest = die
TrainerEngine(emit=lambda _: None).run_job(check_job(json.loads(sys.argv[1])))
"""


def weights_at(directory: Path, *, step: int) -> str:
    return verify(directory / f"step-{step:08d}").weights_sha256


def steps_of(said: list[ChildMessage]) -> list[tuple[str, int]]:
    return [
        (message.type, message.step) for message in said if isinstance(message, Progress | CheckpointSaved)
    ]


@pytest.fixture
def hold_until_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Writing in another thread goes no further before that step was taken."""
    save, advance, main = runs.save_checkpoint, Run.advance, threading.get_ident()

    def hold(step: int) -> None:
        is_taken = threading.Event()

        def save_later(*arguments: Any, **options: Any) -> Checkpoint:
            assert threading.get_ident() == main or is_taken.wait(MAX_WAIT_SECONDS)
            return save(*arguments, **options)

        def advance_and_tell(run: Run) -> Any:
            outcome = advance(run)
            if run.step == step:
                is_taken.set()
            return outcome

        monkeypatch.setattr(runs, "save_checkpoint", save_later)
        monkeypatch.setattr(Run, "advance", advance_and_tell)

    return hold


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_the_run_as_it_stood_though_steps_go_on(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, hold_until_step: Callable[[int], None], dtype: str
) -> None:
    at_once, beside = tmp_path / "at-once", tmp_path / "beside"
    output: dict[str, Any] = {**EVERY_SECOND, "overlap_writing": "off", "checkpoints_dir": str(at_once)}
    result = engine().run_job(job(model={"dtype": dtype}, output=output))
    hold_until_step(4)
    engine().run_job(job(model={"dtype": dtype}, output={**EVERY_SECOND, "checkpoints_dir": str(beside)}))
    for step in range(2, result.num_steps + 1, 2):
        manifests = [verify(directory / f"step-{step:08d}") for directory in (at_once, beside)]
        assert manifests[0].files.keys() == manifests[1].files.keys()
        for name in manifests[0].files:
            assert manifests[0].files[name] == manifests[1].files[name]
        assert manifests[0].train_loss == manifests[1].train_loss


def test_steps_go_on_and_it_is_announced_at_the_first_boundary_after_it_is_whole(
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    tmp_path: Path,
    hold_until_step: Callable[[int], None],
) -> None:
    hold_until_step(3)
    heard: list[bool] = []

    def hear(message: ChildMessage) -> None:
        said.append(message)
        if isinstance(message, CheckpointSaved):
            heard.append(verify(Path(message.path)).step == message.step)

    result = engine(emit=hear).run_job(job(output={"checkpoint_every_steps": 2}))
    steps = steps_of(said)
    assert steps.index(("checkpoint_saved", 2)) > steps.index(("progress", 3))
    assert all(heard)
    assert [step for kind, step in steps if kind == "checkpoint_saved"] == sorted(
        {*range(2, result.num_steps, 2), result.num_steps}
    )


def test_the_next_checkpoint_waits_for_the_one_before(
    engine: MakeEngine, job: JobFactory, monkeypatch: pytest.MonkeyPatch, said: list[ChildMessage]
) -> None:
    save, in_flight, most = runs.save_checkpoint, [0], [0]

    def count(*arguments: Any, **options: Any) -> Checkpoint:
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])
        try:
            return save(*arguments, **options)
        finally:
            in_flight[0] -= 1

    monkeypatch.setattr(runs, "save_checkpoint", count)
    result = engine().run_job(job(output={"checkpoint_every_steps": 1}))
    assert most == [1]
    saved = [step for kind, step in steps_of(said) if kind == "checkpoint_saved"]
    assert saved == list(range(1, result.num_steps + 1))


@pytest.mark.parametrize("request_name", ["stop", "pause"])
def test_a_run_that_ends_early_waits_for_the_one_in_flight_and_saves_where_it_stands(
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    hold_until_step: Callable[[int], None],
    request_name: str,
) -> None:
    hold_until_step(3)
    control = ScriptedControl(request=request_name, after_steps=3)  # type: ignore[arg-type]
    result = engine(control=control).run_job(job(output=EVERY_SECOND))
    assert [step for kind, step in steps_of(said) if kind == "checkpoint_saved"] == [2, 3]
    assert str(result.final_checkpoint).endswith("step-00000003")


def test_a_checkpoint_of_the_step_that_a_run_is_paused_at_is_written_once(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage]
) -> None:
    result = engine(control=ScriptedControl(after_steps=2)).run_job(job(output=EVERY_SECOND))
    assert [step for kind, step in steps_of(said) if kind == "checkpoint_saved"] == [2]
    assert str(result.final_checkpoint).endswith("step-00000002")


def test_a_disk_that_is_full_ends_the_run_and_the_checkpoint_before_stays(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = runs.save_checkpoint

    def fail_at_4(*arguments: Any, **options: Any) -> Checkpoint:
        if options["state"].step == 4:
            raise DiskFull("no space left")
        return save(*arguments, **options)

    monkeypatch.setattr(runs, "save_checkpoint", fail_at_4)
    with pytest.raises(DiskFull):
        engine().run_job(job(output=EVERY_SECOND))
    found, _ = latest_valid(tmp_path / "checkpoints")
    assert found is not None
    assert found.state.step == 2


def test_a_run_that_diverges_beside_it_still_leaves_it_whole_and_announced(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Run.advance

    def diverge(run: Run) -> Any:
        if run.step == 2:
            raise Diverged("The loss of step 3 is nan.")
        return advance(run)

    monkeypatch.setattr(Run, "advance", diverge)
    with pytest.raises(Diverged):
        engine().run_job(job(output=EVERY_SECOND))
    (saved,) = [message for message in said if isinstance(message, CheckpointSaved)]
    assert verify(Path(saved.path)).step == 2


def test_without_memory_for_a_copy_it_is_written_at_once(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(runs, "copied", fail)
    engine().run_job(job(output=EVERY_SECOND))
    steps = steps_of(said)
    assert steps.index(("checkpoint_saved", 2)) < steps.index(("progress", 3))


@pytest.mark.integration
def test_killed_while_writing_it_goes_on_from_the_one_before_to_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path
) -> None:
    config = job(output={"checkpoint_every_steps": 2})
    whole = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "whole")}))
    command = [sys.executable, "-c", DIE_WHILE_WRITING, json.dumps(config.model_dump(mode="json"))]
    died = subprocess.run(command, capture_output=True, timeout=250, check=False)
    assert died.returncode == -9, died.stderr.decode()
    found, warnings = latest_valid(tmp_path / "checkpoints")
    assert found is not None
    assert (found.state.step, warnings) == (2, ())
    resumed = engine().run_job(config)
    assert weights_at(tmp_path / "checkpoints", step=resumed.step) == weights_at(
        tmp_path / "whole", step=whole.step
    )
