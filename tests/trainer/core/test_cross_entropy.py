"""The chunked loss beside the plain one: same value, same gradients, one room however many answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer import cross_entropy as policy
from trainer.config.job import JobConfig
from trainer.core import cross_entropy
from trainer.core.cross_entropy import chunked_cross_entropy, kind_of_run
from trainer.core.engine import TrainerEngine
from trainer.core.loss import Batch, answer_loss_sum
from trainer.errors import ConfigError
from trainer.testing import ScriptedControl

VOCABULARY, HIDDEN, ANSWERS = 509, 32, 37
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def chunk_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six chunks, the last one smaller; four slices of the projection."""
    monkeypatch.setattr(policy, "CHUNK_LOGITS", 7 * VOCABULARY)
    monkeypatch.setattr(cross_entropy, "SLICE_ROWS", 150)


def build(*, is_tied: bool) -> Any:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.3,  # far from even predictions
        tie_word_embeddings=is_tied,
    )
    return Qwen3ForCausalLM(config).train()


def make_batch(*, seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (4, 15), generator=random)
    positions = torch.randperm(ids.numel(), generator=random)[:ANSWERS].sort().values
    targets = torch.randint(0, VOCABULARY, (ANSWERS,), generator=random)
    return Batch(
        input_ids=ids, positions=positions, targets=targets, num_tokens=ids.numel(), num_answers=ANSWERS
    )


def learn(model: Any, *, kind: policy.CrossEntropy, is_half: bool, num_parts: int) -> tuple[float, list[Any]]:
    """Mean loss, and each parameter's gradient, of a batch in so many parts."""
    model.zero_grad(set_to_none=True)
    total, num_answers = 0.0, num_parts * ANSWERS
    for seed in range(num_parts):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
            loss = answer_loss_sum(model, batch=make_batch(seed=seed), kind=kind)
        assert loss.dtype == torch.float32
        (loss / num_answers).backward()
        total += loss.item() / num_answers
    return total, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_loss_and_gradients_are_those_of_the_plain_way(num_parts: int, is_tied: bool) -> None:
    model = build(is_tied=is_tied)
    plain, expected = learn(model, kind="plain", is_half=False, num_parts=num_parts)
    chunked, gradients = learn(model, kind="chunked", is_half=False, num_parts=num_parts)
    assert chunked == pytest.approx(plain, abs=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_way(num_parts: int, is_tied: bool) -> None:
    model = build(is_tied=is_tied)
    _, exact = learn(model, kind="plain", is_half=False, num_parts=num_parts)
    plain, expected = learn(model, kind="plain", is_half=True, num_parts=num_parts)
    chunked, gradients = learn(model, kind="chunked", is_half=True, num_parts=num_parts)
    assert chunked == pytest.approx(plain, abs=1e-5)
    for gradient, other, truth in zip(gradients, expected, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - truth).norm() < 1.1 * (other - truth).norm() + 1e-3 * truth.norm()
        assert (gradient - other).norm() < 0.02 * truth.norm()


@pytest.mark.parametrize("learns", [(True, False), (False, True), (False, False)])
def test_only_what_learns_gets_a_gradient(learns: tuple[bool, bool]) -> None:
    hidden = torch.randn(ANSWERS, HIDDEN, requires_grad=learns[0])
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=learns[1])
    targets = torch.randint(0, VOCABULARY, (ANSWERS,))
    expected = functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    found = chunked_cross_entropy(hidden, weight=weight, targets=targets)
    torch.testing.assert_close(found, expected)
    assert found.requires_grad == any(learns)
    if any(learns):
        wanted = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
        for one, other in zip(
            torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class Allocations(TorchDispatchMode):
    """Storages of at least so many bytes that operations made, by address; those in use stay alive."""

    def __init__(self, *, num_bytes: int) -> None:
        super().__init__()
        self.num_bytes = num_bytes
        self.seen: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() >= self.num_bytes:
                self.seen.setdefault(value.untyped_storage().data_ptr(), value)
        return result


def test_one_gradient_of_the_projection_is_made_however_many_chunks_there_are() -> None:
    wide = 4096  # so that nothing but the projection has its size
    hidden = torch.randn(ANSWERS, wide, requires_grad=True)
    weight = torch.randn(VOCABULARY, wide, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (ANSWERS,))
    with Allocations(num_bytes=weight.nbytes) as made:
        chunked_cross_entropy(hidden, weight=weight, targets=targets).backward()
    new = set(made.seen) - {weight.data_ptr()}
    assert new == {weight.grad.untyped_storage().data_ptr()}  # type: ignore[union-attr]


def test_no_more_logits_are_made_than_those_of_a_chunk() -> None:
    hidden = torch.randn(ANSWERS, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (ANSWERS,))
    with Allocations(num_bytes=7 * VOCABULARY * 4 + 1) as made:
        chunked_cross_entropy(hidden, weight=weight, targets=targets).backward()
    assert {tensor.shape for tensor in made.seen.values()} <= {weight.shape, weight.t().shape}


def test_logits_far_apart_have_a_finite_loss() -> None:
    hidden, weight = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = chunked_cross_entropy(hidden, weight=weight, targets=torch.tensor([1]))
    loss.backward()
    assert loss.item() == 2000
    assert hidden.grad.item() == 2  # type: ignore[union-attr]


def test_a_gradient_that_was_passed_on_cannot_be_taken_again() -> None:
    hidden = torch.randn(2, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN)
    loss = chunked_cross_entropy(hidden, weight=weight, targets=torch.tensor([1, 2]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()


def test_auto_is_plain_to_the_bit_until_there_are_two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(is_tied=True)
    plain = learn(model, kind="plain", is_half=False, num_parts=1)[1]
    chunked = learn(model, kind="chunked", is_half=False, num_parts=1)[1]
    above = learn(model, kind="auto", is_half=False, num_parts=1)[1]
    monkeypatch.setattr(policy, "CHUNK_LOGITS", ANSWERS * VOCABULARY)
    below = learn(model, kind="auto", is_half=False, num_parts=1)[1]
    assert all(torch.equal(one, other) for one, other in zip(above, chunked, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(below, plain, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(above, below, strict=True))


def test_a_projection_with_a_bias_stays_plain_unless_chunks_were_asked_for() -> None:
    model = build(is_tied=False)
    model.lm_head = nn.Linear(HIDDEN, VOCABULARY)
    batch = make_batch(seed=0)
    auto, plain = (answer_loss_sum(model, batch=batch, kind=kind) for kind in ("auto", "plain"))
    assert torch.equal(auto, plain)
    with pytest.raises(ConfigError, match=r"environment.cross_entropy = 'chunked'.*no plain product"):
        answer_loss_sum(model, batch=batch, kind="chunked")


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for liger-kernel 0.8's function, with its signature; its kernels need CUDA."""
    calls: list[dict[str, Any]] = []

    def liger_fused_linear_cross_entropy(
        input: torch.Tensor,  # noqa: A002 - its name there
        weight: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        ce_weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        calls.append({"accum_dtype": accum_dtype, "dtype": input.dtype})
        logits = functional.linear(input, weight, bias)
        return functional.cross_entropy(
            logits.float(),
            target,
            weight=ce_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    functions: Any = sys.modules[names[-1]]
    functions.liger_fused_linear_cross_entropy = liger_fused_linear_cross_entropy
    return calls


@pytest.mark.parametrize("is_half", [False, True])
def test_liger_is_asked_for_the_same_sum(liger: list[dict[str, Any]], is_half: bool) -> None:
    model = build(is_tied=True)
    plain, expected = learn(model, kind="plain", is_half=is_half, num_parts=2)
    fused, gradients = learn(model, kind="liger", is_half=is_half, num_parts=2)
    assert fused == pytest.approx(plain, abs=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)
    assert [call["accum_dtype"] for call in liger] == [torch.float32] * 2


def test_liger_on_a_cpu_is_refused_before_anything_is_read(
    engine: Callable[..., TrainerEngine], job: Callable[..., JobConfig]
) -> None:
    with pytest.raises(ConfigError, match="run on CUDA, and the device is cpu") as caught:
        engine().run_job(
            job(
                environment={"cross_entropy": "liger"}, data={"path": "nowhere.jsonl"}, model={"path": "none"}
            )
        )
    assert caught.value.field == "environment.cross_entropy"
    assert "auto" in caught.value.remedy


def test_liger_that_is_not_installed_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="liger-kernel is not installed") as caught:
        cross_entropy.check_available("liger", device=torch.device("cuda"))
    assert "tandem[liger]" in caught.value.remedy
    monkeypatch.setattr(cross_entropy, "find_spec", lambda name: object())
    cross_entropy.check_available("liger", device=torch.device("cuda"))


@pytest.mark.parametrize("began", ["chunked", "plain"])
def test_a_run_goes_on_to_the_bit_as_it_began_whatever_is_asked_for_now(
    engine: Callable[..., TrainerEngine], job: Callable[..., JobConfig], tmp_path: Path, began: str
) -> None:
    def run(directory: str, *, kind: str, **options: Any) -> None:
        output = {"checkpoints_dir": str(tmp_path / directory)}
        engine(**options).run_job(job(environment={"cross_entropy": kind}, output=output))

    def weights(directory: str) -> dict[str, torch.Tensor]:
        return load_file(sorted((tmp_path / directory).glob("step-*"))[-1] / "model.safetensors")

    other_kind = "plain" if began == "chunked" else "chunked"
    run("straight", kind=began)
    run("broken", kind=began, control=ScriptedControl(after_steps=3))
    run("broken", kind=other_kind)
    run("other", kind=other_kind)
    straight, broken, other = weights("straight"), weights("broken"), weights("other")
    assert all(torch.equal(straight[name], broken[name]) for name in straight)
    assert not all(torch.equal(straight[name], other[name]) for name in straight)


def test_a_checkpoint_from_before_there_was_a_choice_goes_on_plain() -> None:
    old = {"environment": {"device": "cpu", "num_threads": 1}}
    assert kind_of_run(old, wished="auto", device=CPU) == "plain"
    assert kind_of_run({}, wished="auto", device=CPU) == "plain"


def test_a_run_of_ligers_that_moved_to_a_cpu_goes_on_as_is_asked_for_there() -> None:
    began = {"environment": {"cross_entropy": "liger"}}
    assert kind_of_run(began, wished="auto", device=CPU) == "auto"
