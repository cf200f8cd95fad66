"""The gap is measured on rows that are not learnt, in its share of the time, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from registry.files import sha256_file
from trainer.config.job import JobConfig
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset
from trainer.core.engine import TrainerEngine
from trainer.core.loss import answer_loss_sum, collate
from trainer.core.models import load_model, load_tokenizer
from trainer.errors import DataError
from trainer.messages import ChildMessage, Progress, Warned
from trainer.monitoring import probe
from trainer.monitoring.held_out import held_out_sequences, stands_in
from trainer.monitoring.probe import SequenceSums, evaluation_of, gap_state

Make = Callable[..., TrainerEngine]


def measured(said: list[ChildMessage]) -> list[Any]:
    return [message.micro_evaluation for message in said if isinstance(message, Progress)]


def watched(path: Path, **more: Any) -> dict[str, Any]:
    settings = {"validation_path": str(path), "validate_every_seconds": 0, "max_validation_share": 0.5}
    return settings | {"report_every_seconds": 0, "num_validation_rows": 8} | more


def longer(num_epochs: int) -> dict[str, Any]:
    """Four steps an epoch."""
    return {"num_epochs": num_epochs, "tokens_per_batch": 240, "learning_rate": 1e-3, "warmup_steps": 2}


def weights_of(directory: Path) -> list[str]:
    return [sha256_file(path) for path in sorted(directory.rglob("*.safetensors"))]


def test_weights_and_optimizer_are_the_same_to_the_bit_with_and_without(
    engine: Make, job: Callable[..., JobConfig], said: list[ChildMessage], suite: Path, tmp_path: Path
) -> None:
    for name, monitoring in (("with", watched(suite)), ("without", {})):
        output = {"checkpoints_dir": str(tmp_path / name), "num_checkpoints": 2}
        engine().run_job(job(monitoring=monitoring, output=output, hyperparameters=longer(2)))
    assert sum(found is not None for found in measured(said)) >= 2
    with_it, without = weights_of(tmp_path / "with"), weights_of(tmp_path / "without")
    assert len(with_it) >= 4
    assert with_it == without


def test_rows_that_the_model_cannot_read_are_not_measured(
    engine: Make, job: Callable[..., JobConfig], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def read(*arguments: Any, max_length: int, **options: Any) -> TokenizedDataset:
        asked.append(max_length)
        return held_out_sequences(*arguments, max_length=max_length, **options)

    monkeypatch.setattr(probe, "held_out_sequences", read)
    monkeypatch.setattr(probe, "most_tokens", lambda _model: 40)
    engine().run_job(job(monitoring=watched(suite), hyperparameters=longer(1)))
    assert asked == [40]


def test_a_measurement_is_the_models_own_loss_and_token_accuracy_on_both_sides(
    engine: Make, job: Callable[..., JobConfig], said: list[ChildMessage], suite: Path, tmp_path: Path
) -> None:
    engine().run_job(job(monitoring=watched(suite, num_validation_rows=40), hyperparameters=longer(4)))
    found = measured(said)[-1]
    last = max((tmp_path / "checkpoints").glob("*/model.safetensors")).parent
    model = load_model(last, device=torch.device("cpu"), tokenizer=load_tokenizer(last))
    encoder = ChatEncoder(load_tokenizer(last))
    from trainer.core.data import tokenize_file

    held_out = tokenize_file(suite, encoder=encoder, max_length=128, overlong="drop")
    batch = collate(held_out, indices=np.arange(40), device=torch.device("cpu"))
    with torch.no_grad():
        loss = float(answer_loss_sum(model, batch=batch)) / batch.num_answers
    assert found.step == 16
    assert found.validation_loss.value == pytest.approx(loss, rel=1e-5)
    assert (found.validation_loss.num_samples, found.num_validation_tokens) == (40, batch.num_answers)
    assert found.gap.value == pytest.approx(found.validation_loss.value - found.training_loss.value)
    assert found.gap.low < found.gap.value < found.gap.high
    assert 0 <= found.validation_accuracy.value <= found.training_accuracy.high


def test_measuring_takes_no_more_than_its_share_of_the_time(
    engine: Make, job: Callable[..., JobConfig], said: list[ChildMessage], suite: Path
) -> None:
    """The clock goes on by a second with each look at it, so that a measurement takes one."""
    engine().run_job(job(monitoring=watched(suite, max_validation_share=0.1), hyperparameters=longer(15)))
    reports = [message for message in said if isinstance(message, Progress)]
    steps = {found.step for found in measured(said) if found is not None}
    assert reports[0].unmeasured_because == probe.NOT_YET
    # Each of the 60 steps looks at the clock five times at most: a tenth of 300 seconds is thirty.
    assert 5 <= len(steps) <= 30


def test_without_time_to_measure_there_is_no_number_and_the_reason(
    engine: Make, job: Callable[..., JobConfig], said: list[ChildMessage], suite: Path
) -> None:
    engine().run_job(job(monitoring=watched(suite, max_validation_share=0)))
    assert set(measured(said)) == {None}
    last = [message for message in said if isinstance(message, Progress)][-1]
    assert last.unmeasured_because == probe.NOT_YET


def test_a_suite_that_cannot_be_read_is_a_warning_and_the_run_goes_on(
    engine: Make, job: Callable[..., JobConfig], said: list[ChildMessage], tmp_path: Path
) -> None:
    result = engine().run_job(job(monitoring=watched(tmp_path / "nowhere.jsonl")))
    assert result.state == "finished"
    warnings = [message.message for message in said if isinstance(message, Warned)]
    assert len(warnings) == 1
    assert "nowhere.jsonl cannot be read" in warnings[0]


def test_memory_that_runs_out_while_measuring_ends_the_measuring_and_not_the_run(
    engine: Make,
    job: Callable[..., JobConfig],
    said: list[ChildMessage],
    suite: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probe, "measure", full)
    assert engine().run_job(job(monitoring=watched(suite), hyperparameters=longer(2))).state == "finished"
    warnings = [message.message for message in said if isinstance(message, Warned)]
    assert len(warnings) == 1
    assert "memory ran out while measuring" in warnings[0]


def test_a_row_that_is_trained_on_is_not_held_out(
    dataset: TokenizedDataset, rows_file: Path, suite: Path, tokenizer: Any, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(rows_file.read_text() + suite.read_text())
    found = held_out_sequences(
        mixed, encoder=ChatEncoder(tokenizer), training=dataset, max_length=128, num_rows=1000
    )
    assert found.num_rows == 40
    trained = dataset.tokens[dataset.starts[3] : dataset.starts[4]].tolist()
    assert stands_in(dataset, tokens=trained)
    assert not stands_in(dataset, tokens=[trained[0] + 1, *trained[1:]])


def test_the_same_rows_are_held_out_whatever_their_order(
    dataset: TokenizedDataset, suite: Path, tokenizer: Any, tmp_path: Path
) -> None:
    backward = tmp_path / "backward.jsonl"
    backward.write_text("\n".join(suite.read_text().splitlines()[::-1]))
    found = [
        held_out_sequences(
            path, encoder=ChatEncoder(tokenizer), training=dataset, max_length=128, num_rows=10
        ).tokens.tolist()
        for path in (suite, backward)
    ]
    assert found[0] == found[1]


def test_too_few_rows_say_why(dataset: TokenizedDataset, rows_file: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"has 0 rows to measure by.*24 stand in the training data"):
        held_out_sequences(
            rows_file, encoder=ChatEncoder(tokenizer), training=dataset, max_length=128, num_rows=10
        )


def test_no_number_is_made_of_losses_that_are_not_finite() -> None:
    ones = np.ones(8)
    fine, ruined = SequenceSums(ones, ones, ones), SequenceSums(np.array([*ones[1:], np.nan]), ones, ones)
    assert evaluation_of(fine, training=fine, step=3).gap is not None
    found = evaluation_of(fine, training=ruined, step=3)
    assert (found.gap, found.validation_loss, found.gap_state) == (None, None, None)
    assert "not finite at step 3" in found.problem
    assert "NaN" not in json.dumps(found.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("gap", "state"),
    [(-0.1, "good"), (0.29, "good"), (0.3, "watch"), (0.5, "watch"), (0.51, "overfitting")],
)
def test_gaps_have_names(gap: float, state: str) -> None:
    assert gap_state(gap) == state
