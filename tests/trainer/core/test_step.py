"""One optimizer step, also when memory runs out or the numbers go bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trainer import cross_entropy as policy
from trainer.config.hyperparameters import Hyperparameters
from trainer.core import cross_entropy
from trainer.core import loss as losses
from trainer.core import step as steps
from trainer.core.data import TokenizedDataset
from trainer.core.loss import Batch
from trainer.core.optimizer import make_optimizer
from trainer.core.step import StepRunner
from trainer.errors import Diverged, OutOfMemory

CPU = torch.device("cpu")
OTHER_FORMS_OF_OUT_OF_MEMORY = [
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9 bytes."
    ),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later."),
    MemoryError(),
]
MakeRunner = Callable[..., StepRunner]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def make_runner(model: Any, dataset: TokenizedDataset, warnings: list[str]) -> MakeRunner:
    def make(*, dtype: torch.dtype = torch.float32, max_grad_norm: float = 1.0) -> StepRunner:
        hyperparameters = Hyperparameters(learning_rate=1e-3, max_grad_norm=max_grad_norm)
        return StepRunner(
            model,
            optimizer=make_optimizer(model, hyperparameters=hyperparameters),
            dataset=dataset,
            hyperparameters=hyperparameters,
            device=CPU,
            dtype=dtype,
            warn=warnings.append,
        )

    return make


@pytest.fixture
def limit_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Memory runs out above a number of rows, after the part's loss was computed."""
    original = losses.answer_loss_sum

    def limit(num_rows: int, *, error: Exception | None = None) -> None:
        def loss(model: Any, *, batch: Batch, **options: Any) -> torch.Tensor:
            if batch.input_ids.shape[0] > num_rows:
                raise error or torch.OutOfMemoryError("CUDA out of memory.")
            return original(model, batch=batch, **options)

        monkeypatch.setattr(losses, "answer_loss_sum", loss)

    return limit


def gradients(
    runner: StepRunner, model: Any, indices: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    """What the optimizer would be given; the weights stay."""
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(
        runner, "_move", lambda: taken.extend(parameter.grad.clone() for parameter in model.parameters())
    )
    runner.take(indices, step=1, learning_rate=1e-3)
    model.zero_grad()
    return taken


def test_a_step_lowers_the_loss_of_its_batch(make_runner: MakeRunner) -> None:
    runner, indices = make_runner(), np.arange(8)
    first = runner.take(indices, step=1, learning_rate=1e-3)
    second = runner.take(indices, step=2, learning_rate=1e-3)
    assert second.loss_sum < first.loss_sum
    assert first.num_answers == second.num_answers > 0


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5])
def test_the_gradient_of_a_split_batch_is_that_of_the_whole(
    make_runner: MakeRunner, model: Any, limit_rows: Any, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    indices = np.arange(8)
    whole = gradients(make_runner(max_grad_norm=1e9), model, indices, monkeypatch)
    limit_rows(num_rows)
    split = gradients(make_runner(max_grad_norm=1e9), model, indices, monkeypatch)
    for expected, gradient in zip(whole, split, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_memory_that_runs_out_in_a_later_chunk_leaves_nothing_of_the_first_try(
    make_runner: MakeRunner, model: Any, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    indices, made = np.arange(8), cross_entropy._to_gradient
    monkeypatch.setattr(policy, "CHUNK_LOGITS", 5 * model.config.vocab_size)
    num_chunks = [0]

    def fail_at_the_third_chunk(logits: torch.Tensor, *, targets: torch.Tensor) -> torch.Tensor:
        num_chunks[0] += 1
        if num_chunks[0] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return made(logits, targets=targets)

    whole = gradients(make_runner(max_grad_norm=1e9), model, indices, monkeypatch)
    monkeypatch.setattr(cross_entropy, "_to_gradient", fail_at_the_third_chunk)
    split = gradients(make_runner(max_grad_norm=1e9), model, indices, monkeypatch)
    assert len(warnings) == 1
    assert num_chunks[0] > 6
    for expected, gradient in zip(whole, split, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_a_retry_forgets_the_gradient_and_the_random_numbers_of_the_failed_try(
    make_runner: MakeRunner, model: Any, monkeypatch: pytest.MonkeyPatch, dataset: TokenizedDataset
) -> None:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    indices = np.arange(8)
    runner = make_runner(max_grad_norm=1e9)
    runner.max_tokens = 4 * int(dataset.lengths[indices].max())
    original, calls = losses.answer_loss_sum, [0]

    def fail_on_the_second_part(model: Any, *, batch: Batch, **options: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, batch=batch, **options)

    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(losses, "answer_loss_sum", fail_on_the_second_part)
        retried = gradients(runner, model, indices, monkeypatch)
    torch.manual_seed(1)
    straight_runner = make_runner(max_grad_norm=1e9)
    straight_runner.max_tokens = runner.max_tokens
    straight = gradients(straight_runner, model, indices, monkeypatch)
    assert all(torch.equal(one, other) for one, other in zip(retried, straight, strict=True))


def test_the_limit_is_remembered_and_said_once(
    make_runner: MakeRunner, limit_rows: Any, warnings: list[str], dataset: TokenizedDataset
) -> None:
    runner = make_runner()
    limit_rows(4)
    indices = np.argsort(-dataset.lengths)[:8]
    runner.take(indices, step=1, learning_rate=1e-3)
    assert runner.max_tokens == 4 * int(dataset.lengths[indices].max())
    runner.take(indices, step=2, learning_rate=1e-3)
    assert len(warnings) == 1
    assert "8 rows" in warnings[0]


@pytest.mark.parametrize("error", OTHER_FORMS_OF_OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
def test_every_form_of_out_of_memory_splits_the_step(
    make_runner: MakeRunner, limit_rows: Any, warnings: list[str], error: Exception
) -> None:
    limit_rows(4, error=error)
    make_runner().take(np.arange(8), step=1, learning_rate=1e-3)
    assert len(warnings) == 1


def test_memory_that_runs_out_while_a_part_is_laid_out_splits_the_step(
    make_runner: MakeRunner, model: Any, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    indices, original = np.arange(8), losses.collate
    whole = gradients(make_runner(max_grad_norm=1e9), model, indices, monkeypatch)

    def collate(dataset: TokenizedDataset, *, indices: np.ndarray, device: torch.device) -> Batch:
        if len(indices) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(dataset, indices=indices, device=device)

    monkeypatch.setattr(losses, "collate", collate)
    split = gradients(make_runner(max_grad_norm=1e9), model, indices, monkeypatch)
    assert len(warnings) == 1
    for expected, gradient in zip(whole, split, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_another_error_is_not_taken_for_memory(make_runner: MakeRunner, limit_rows: Any) -> None:
    limit_rows(4, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        make_runner().take(np.arange(8), step=1, learning_rate=1e-3)


def test_a_single_row_that_does_not_fit_is_named(
    make_runner: MakeRunner, limit_rows: Any, dataset: TokenizedDataset
) -> None:
    limit_rows(0)
    longest = int(dataset.lengths[5])
    with pytest.raises(OutOfMemory, match=rf"Row 6 alone \({longest} tokens\)"):
        make_runner().take(np.array([5]), step=1, learning_rate=1e-3)


def test_memory_that_runs_out_in_the_optimizer_is_named(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(runner._optimizer, "step", fail)
    with pytest.raises(OutOfMemory, match="optimizer's moments"):
        runner.take(np.arange(2), step=1, learning_rate=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    make_runner: MakeRunner, model: Any, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    original = losses.answer_loss_sum
    monkeypatch.setattr(
        steps.losses,
        "answer_loss_sum",
        lambda model, *, batch, **options: original(model, batch=batch, **options) * value,
    )
    with pytest.raises(Diverged, match="The loss of step 3 is"):
        make_runner().take(np.arange(4), step=3, learning_rate=1e-3)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(make_runner: MakeRunner, model: Any) -> None:
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(Diverged, match="gradient norm of step 1 is nan"):
        make_runner().take(np.arange(4), step=1, learning_rate=1e-3)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_bfloat16_arithmetic_keeps_weights_in_float32(make_runner: MakeRunner, model: Any) -> None:
    exact = make_runner().take(np.arange(8), step=1, learning_rate=1e-5).loss_sum
    rounded = make_runner(dtype=torch.bfloat16).take(np.arange(8), step=1, learning_rate=1e-5).loss_sum
    assert rounded == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_model_with_ruined_weights_is_not_finite(make_runner: MakeRunner, model: Any) -> None:
    runner = make_runner()
    assert runner.is_finite_on(0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    assert not runner.is_finite_on(0)
