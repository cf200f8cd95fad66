"""One job in, verified checkpoints out; cut off anywhere, it ends with the same bits."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.manifests import verify
from trainer.config.job import JobConfig
from trainer.core import engine as engines
from trainer.core import loss as losses
from trainer.core.checkpoints import latest_valid
from trainer.core.engine import TrainerEngine
from trainer.core.models import load_model, load_tokenizer
from trainer.core.run import Run
from trainer.errors import ConfigError, DataError, Diverged, ModelError, OutOfMemory
from trainer.messages import (
    CheckpointSaved,
    ChildMessage,
    Finished,
    Progress,
    Started,
    TrainingResult,
    Warned,
)
from trainer.testing import ScriptedControl

MakeEngine = Callable[..., TrainerEngine]
JobFactory = Callable[..., JobConfig]


def of(kind: type[Any], said: list[ChildMessage]) -> list[Any]:
    return [message for message in said if isinstance(message, kind)]


def weights_of(result: TrainingResult) -> str:
    assert result.final_checkpoint is not None
    return verify(Path(result.final_checkpoint)).weights_sha256


def test_a_job_ends_with_a_verified_checkpoint(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage]
) -> None:
    result = engine().run_job(job())
    (started,), (saved,) = of(Started, said), of(CheckpointSaved, said)
    assert (started.num_rows, started.num_sequences, started.num_dropped_rows) == (24, 24, 0)
    assert result.state == "finished"
    assert result.step == result.num_steps == started.num_steps
    assert saved.is_final
    assert saved.path == result.final_checkpoint
    assert saved.weights_sha256 == weights_of(result)
    assert said[-1] == Finished(result=result)


def test_every_step_is_reported_with_the_numbers_of_that_step(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage]
) -> None:
    result = engine().run_job(job())
    reports = of(Progress, said)
    assert [report.step for report in reports] == list(range(1, result.num_steps + 1))
    assert reports[0].learning_rate == pytest.approx(0.5e-3)
    assert reports[1].learning_rate == pytest.approx(1e-3)
    assert reports[-1].epoch == 1
    assert reports[-1].num_tokens == result.num_tokens


def test_the_model_learns(engine: MakeEngine, job: JobFactory, said: list[ChildMessage]) -> None:
    engine().run_job(job(hyperparameters={"learning_rate": 5e-3, "num_epochs": 5}))
    reports = of(Progress, said)
    assert reports[-1].loss < reports[0].loss * 0.8


def test_the_manifest_says_where_the_checkpoint_comes_from(engine: MakeEngine, job: JobFactory) -> None:
    config = job(parent_checkpoint_id="ckpt-0")
    result = engine().run_job(config)
    manifest = verify(Path(str(result.final_checkpoint)))
    assert (manifest.job_id, manifest.dataset_id, manifest.parent_checkpoint_id) == (
        "job-1",
        "dataset-1",
        "ckpt-0",
    )
    assert JobConfig.model_validate(manifest.config) == config
    assert manifest.is_final
    assert manifest.train_loss == pytest.approx(result.mean_loss)


def test_the_same_job_gives_the_same_bits(engine: MakeEngine, job: JobFactory, tmp_path: Path) -> None:
    first = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "a")}))
    second = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "b")}))
    assert weights_of(first) == weights_of(second)


@pytest.mark.parametrize(
    ("after_steps", "dtype"), [(1, "float32"), (3, "float32"), (7, "float32"), (3, "bfloat16")]
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, after_steps: int, dtype: str
) -> None:
    chosen = {"hyperparameters": {"num_epochs": 2}, "model": {"dtype": dtype}}
    whole = engine().run_job(job(**chosen, output={"checkpoints_dir": str(tmp_path / "whole")}))
    stopped = engine(control=ScriptedControl(after_steps=after_steps)).run_job(job(**chosen))
    assert (stopped.state, stopped.step) == ("stopped", after_steps)
    resumed = engine().run_job(job(**chosen))
    assert weights_of(resumed) == weights_of(whole)
    assert resumed.mean_loss == whole.mean_loss
    assert resumed.num_tokens == whole.num_tokens


def test_a_run_cut_off_many_times_ends_with_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path
) -> None:
    whole = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "whole")}))
    result = None
    for _ in range(whole.num_steps):
        result = engine(control=ScriptedControl(after_steps=1)).run_job(job())
    assert result is not None
    assert result.state == "finished"
    assert weights_of(result) == weights_of(whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "whole")}))
    config = job(output={"checkpoint_every_steps": 2})
    advance = Run.advance

    def die_at_step_4(run: Run) -> Any:
        if run.step == 3:
            raise KeyboardInterrupt
        return advance(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "advance", die_at_step_4)
        engine().run_job(config)
    assert weights_of(engine().run_job(config)) == weights_of(whole)


def use_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout(*arguments: Any, **options: Any) -> Any:
        model = load_model(*arguments, **options)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        return model

    monkeypatch.setattr(engines, "load_model", with_dropout)


def test_a_run_paused_at_any_of_its_steps_goes_on_to_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_dropout(monkeypatch)
    whole = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "whole")}))
    assert whole.num_steps > 3
    for step in range(1, whole.num_steps):
        config = job(output={"checkpoints_dir": str(tmp_path / f"paused-at-{step}")})
        paused = engine(control=ScriptedControl(request="pause", after_steps=step)).run_job(config)
        assert (paused.state, paused.step) == ("paused", step)
        assert weights_of(engine().run_job(config)) == weights_of(whole), f"paused at step {step}"


@pytest.mark.parametrize("seed", range(3))
def test_a_run_paused_again_and_again_at_random_steps_goes_on_to_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    use_dropout(monkeypatch)
    draw, chosen = random.Random(seed), {"hyperparameters": {"num_epochs": 2, "seed": seed}}
    whole = engine().run_job(job(**chosen, output={"checkpoints_dir": str(tmp_path / "whole")}))
    step, result = 0, None
    while result is None or result.state == "paused":
        num_steps = draw.randrange(1, 6)
        control = ScriptedControl(request="pause", after_steps=num_steps)
        result = engine(control=control).run_job(job(**chosen))
        step = min(step + num_steps, whole.num_steps)
        assert result.step == step
    assert weights_of(result) == weights_of(whole)


def test_dropout_draws_the_same_numbers_after_resuming(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_dropout(monkeypatch)
    whole = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "whole")}))
    engine(control=ScriptedControl(after_steps=2)).run_job(job())
    assert weights_of(engine().run_job(job())) == weights_of(whole)


def test_a_corrupted_newest_checkpoint_is_passed_over_and_the_bits_are_the_same(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage], tmp_path: Path
) -> None:
    whole = engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "whole")}))
    config = job(output={"checkpoint_every_steps": 1})
    engine(control=ScriptedControl(after_steps=4)).run_job(config)
    os.truncate(tmp_path / "checkpoints" / "step-00000004" / "training_state.safetensors", 100)
    said.clear()
    result = engine().run_job(config)
    assert of(Started, said)[0].resumed_from_step == 3
    assert "step-00000004 is passed over" in of(Warned, said)[0].message
    assert weights_of(result) == weights_of(whole)


def test_a_run_that_ended_unheard_says_its_checkpoint_again(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage]
) -> None:
    first = engine().run_job(job())
    said.clear()
    again = engine().run_job(job())
    assert again.state == "finished"
    assert of(Progress, said) == []
    assert [saved.path for saved in of(CheckpointSaved, said)] == [first.final_checkpoint]


def test_pausing_is_stopping_by_another_name(engine: MakeEngine, job: JobFactory) -> None:
    result = engine(control=ScriptedControl(request="pause", after_steps=2)).run_job(job())
    assert (result.state, result.step) == ("paused", 2)
    assert result.final_checkpoint is not None


def test_a_run_that_ends_early_reports_its_last_step_though_the_interval_is_long(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage]
) -> None:
    quiet = {"monitoring": {"report_every_seconds": 3600}}
    result = engine(control=ScriptedControl(request="pause", after_steps=3)).run_job(job(**quiet))
    last = of(Progress, said)[-1]
    assert (last.step, last.num_unused_rows) == (3, result.num_unused_rows)
    assert 0 < result.num_unused_rows < 60


def test_a_run_stopped_before_its_first_step_has_nothing_to_save(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage]
) -> None:
    result = engine(control=ScriptedControl(after_steps=0)).run_job(job())
    assert (result.state, result.step, result.final_checkpoint, result.mean_loss) == (
        "stopped",
        0,
        None,
        None,
    )
    assert of(CheckpointSaved, said) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hyperparameters": {"seed": 5}}, "with other seed"),
        ({"model": {"dtype": "bfloat16"}}, "with other data, parent or settings"),
        ({"resume": False}, "resume is false"),
    ],
)
def test_another_runs_checkpoints_are_never_overwritten(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    engine(control=ScriptedControl(after_steps=2)).run_job(job())
    before = latest_valid(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match=named):
        engine().run_job(job(**changes))
    assert latest_valid(tmp_path / "checkpoints") == before


def fail_from_step(number: int, *, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is not a number from that step on."""
    original, calls = losses.answer_loss_sum, [0]

    def loss(model: Any, *, batch: Any, **options: Any) -> torch.Tensor:
        calls[0] += model.training
        return original(model, batch=batch, **options) * (float("nan") if calls[0] >= number else 1)

    monkeypatch.setattr(losses, "answer_loss_sum", loss)


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_good_checkpoint(
    engine: MakeEngine,
    job: JobFactory,
    said: list[ChildMessage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_from_step(4, monkeypatch=monkeypatch)
    with pytest.raises(Diverged, match="The loss of step 4 is nan"):
        engine().run_job(job(output={"checkpoint_every_steps": 2}))
    assert [saved.step for saved in of(CheckpointSaved, said)] == [2]
    assert [report.step for report in of(Progress, said)] == [1, 2, 3]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_weights_ruined_by_the_last_step_are_not_saved(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Run.advance

    def ruin_the_last(run: Run) -> Any:
        outcome = advance(run)
        if run.is_done:
            with torch.no_grad():
                run.model.model.norm.weight[0] = float("nan")
        return outcome

    monkeypatch.setattr(Run, "advance", ruin_the_last)
    with pytest.raises(Diverged, match="no longer give a finite loss"):
        engine().run_job(job())
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_run_that_ran_out_of_memory_takes_every_step_nonetheless(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = losses.answer_loss_sum

    def loss(model: Any, *, batch: Any, **options: Any) -> torch.Tensor:
        if batch.input_ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, batch=batch, **options)

    monkeypatch.setattr(losses, "answer_loss_sum", loss)
    result = engine().run_job(job())
    assert result.step == result.num_steps
    assert of(Warned, said)


def test_a_resumed_run_knows_what_fits_in_memory(
    engine: MakeEngine, job: JobFactory, said: list[ChildMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = losses.answer_loss_sum

    def fail_above_two_rows(model: Any, *, batch: Any, **options: Any) -> torch.Tensor:
        if batch.input_ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, batch=batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "answer_loss_sum", fail_above_two_rows)
        engine(control=ScriptedControl(after_steps=3)).run_job(job())
    stopped, _ = latest_valid(job().output.checkpoints_dir)
    engine().run_job(job())
    finished, _ = latest_valid(job().output.checkpoints_dir)
    assert stopped is not None
    assert finished is not None
    assert finished.state.max_tokens == stopped.state.max_tokens is not None


def test_a_run_goes_on_in_the_smaller_parts_that_it_is_told(
    engine: MakeEngine, job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = losses.answer_loss_sum

    def note(model: Any, *, batch: Any, **options: Any) -> torch.Tensor:
        rows.append(batch.input_ids.shape[0])
        return original(model, batch=batch, **options)

    monkeypatch.setattr(losses, "answer_loss_sum", note)
    engine(control=ScriptedControl(after_steps=3)).run_job(job())
    stopped, _ = latest_valid(job().output.checkpoints_dir)
    assert stopped is not None
    assert max(rows) > 1
    rows.clear()
    engine().run_job(job(environment={"device": "cpu", "num_threads": 1, "max_part_tokens": 1}))
    finished, _ = latest_valid(job().output.checkpoints_dir)
    assert finished is not None
    assert set(rows) == {1}
    assert (stopped.state.max_tokens, finished.state.max_tokens) == (None, 1)
    assert finished.state.run_digest == stopped.state.run_digest


def test_memory_that_runs_out_elsewhere_is_named(
    engine: MakeEngine, job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(engines, "check_projection", fail)
    with pytest.raises(OutOfMemory, match="outside of a training step"):
        engine().run_job(job())


def test_rows_that_cannot_be_used_are_a_data_error(
    engine: MakeEngine, job: JobFactory, write_rows: Callable[..., Path]
) -> None:
    path = write_rows([{"text": "no turns"}], name="bad.jsonl")
    with pytest.raises(DataError, match="line 1"):
        engine().run_job(job(data={"path": str(path)}))


def test_a_missing_model_is_a_model_error(engine: MakeEngine, job: JobFactory, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no config.json"):
        engine().run_job(job(model={"path": str(tmp_path)}))


def test_a_cuda_device_that_is_not_there_is_a_config_error(engine: MakeEngine, job: JobFactory) -> None:
    with pytest.raises(ConfigError, match="CUDA devices"):
        engine().run_job(job(environment={"device": "cuda:99"}))


def test_a_run_leaves_torch_as_it_found_it(engine: MakeEngine, job: JobFactory) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    engine().run_job(job())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


def test_a_checkpoint_is_a_parent_for_the_next_job(
    engine: MakeEngine, job: JobFactory, tmp_path: Path
) -> None:
    first = engine().run_job(job())
    path = Path(str(first.final_checkpoint))
    second = engine().run_job(
        job(model={"path": str(path)}, output={"checkpoints_dir": str(tmp_path / "next")})
    )
    assert second.step == second.num_steps
    assert weights_of(second) != weights_of(first)
    load_model(path, device=torch.device("cpu"), tokenizer=load_tokenizer(path))
