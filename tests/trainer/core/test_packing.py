"""Packed rows: each once an epoch and within the budget; none sees another; the loss is the padded one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from registry.manifests import verify
from registry.rows import ChatMessage, ChatRow
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import JobConfig
from trainer.core import loss as losses
from trainer.core import packed_attention as attention
from trainer.core.batching import BatchPlan, batch_tokens, split_to_limit
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset
from trainer.core.engine import TrainerEngine
from trainer.core.loss import answer_loss_sum, collate, pack
from trainer.core.optimizer import make_optimizer
from trainer.core.packed_attention import suits_packing, use_packed_attention, wants_packing
from trainer.core.packing import packed
from trainer.core.step import StepRunner
from trainer.errors import ConfigError
from trainer.messages import ChildMessage, Started, Warned
from trainer.testing import ScriptedControl

CPU = torch.device("cpu")
JobFactory = Callable[..., JobConfig]
MakeEngine = Callable[..., TrainerEngine]
lengths_of = st.lists(st.integers(2, 300), min_size=1, max_size=80).map(lambda values: np.array(values))
budgets = st.integers(1, 1200)
texts = st.text("abcdef", min_size=1, max_size=12)
conversations = st.lists(st.lists(texts, min_size=2, max_size=6), min_size=1, max_size=6)


def plan(lengths: np.ndarray, *, budget: int) -> BatchPlan:
    return BatchPlan(lengths=lengths, tokens_per_batch=budget, num_epochs=2, seed=3, is_packed=True)


@given(lengths=lengths_of, budget=budgets)
def test_every_row_is_met_once_an_epoch_and_no_pack_exceeds_its_budget(
    lengths: np.ndarray, budget: int
) -> None:
    made = plan(lengths, budget=budget)
    for epoch in range(2):
        batches = [made.batch(epoch * made.steps_per_epoch + step) for step in range(made.steps_per_epoch)]
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert all(len(batch) == 1 or lengths[batch].sum() <= budget for batch in batches)


@given(lengths=lengths_of, budget=budgets)
def test_no_two_packs_would_fit_into_one(lengths: np.ndarray, budget: int) -> None:
    longest_first = -np.sort(-lengths)
    positions, bounds = packed(longest_first, tokens_per_batch=budget)
    sizes = sorted(longest_first[positions[low:high]].sum() for low, high in itertools.pairwise(bounds))
    assert len(sizes) == 1 or sizes[0] + sizes[1] > budget


def test_hardly_any_room_is_left_on_a_long_tail() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, size=4000).astype(np.int64).clip(8, 2000)
    made = plan(lengths, budget=4096)
    assert lengths.sum() / (made.steps_per_epoch * 4096) > 0.93


@given(lengths=lengths_of, limit=st.integers(1, 900))
def test_parts_of_a_pack_keep_their_limit_and_their_order(lengths: np.ndarray, limit: int) -> None:
    indices = np.arange(len(lengths))
    parts = list(split_to_limit(indices, lengths=lengths, max_tokens=limit, is_packed=True))
    assert np.concatenate(parts).tolist() == indices.tolist()
    assert all(
        len(part) == 1 or batch_tokens(part, lengths=lengths, is_packed=True) <= limit for part in parts
    )


def encoded(tokenizer: Any, *, rows: list[list[str]]) -> TokenizedDataset:
    """Conversations whose turns are these texts, the user's first; one without an answer is given one."""
    chats = []
    for turns in rows:
        roles = ["user", "assistant"] * len(turns)
        messages = [
            ChatMessage(role=role, content=text)  # type: ignore[arg-type]
            for role, text in zip(roles, turns, strict=False)
        ]
        if len(messages) % 2:
            messages.append(ChatMessage(role="assistant", content="a"))
        chats.append(ChatRow(messages=tuple(messages)))
    examples = [example for found in ChatEncoder(tokenizer).encode(chats) for example in found]
    return TokenizedDataset(
        tokens=np.array([token for one in examples for token in one.tokens], dtype=np.uint32),
        is_answer=np.array([mark for one in examples for mark in one.is_answer], dtype=np.bool_),
        starts=np.cumsum([0, *(len(one.tokens) for one in examples)]),
        row_numbers=np.arange(1, len(examples) + 1),
        num_rows=len(examples),
        num_dropped_rows=0,
    )


@given(rows=conversations)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_token_counts_once_and_its_loss_is_that_of_the_padded_rows(
    model: Any, tokenizer: Any, rows: list[list[str]]
) -> None:
    dataset = encoded(tokenizer, rows=rows)
    indices = np.arange(dataset.num_sequences)
    padded, flat = (make(dataset, indices=indices, device=CPU) for make in (collate, pack))
    answers = dataset.tokens[dataset.is_answer].astype(np.int64)
    assert flat.targets.tolist() == answers.tolist()
    assert len(set(flat.positions.tolist())) == flat.num_answers == len(answers)
    assert flat.num_tokens == len(dataset.tokens)
    expected = answer_loss_sum(model, batch=padded).item() / padded.num_answers
    use_packed_attention(model)
    assert answer_loss_sum(model, batch=padded).item() / padded.num_answers == pytest.approx(
        expected, abs=1e-5
    )
    assert answer_loss_sum(model, batch=flat).item() / flat.num_answers == pytest.approx(expected, abs=1e-5)
    model.set_attn_implementation("sdpa")


@given(rows=conversations, data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_token_attends_across_rows(
    model: Any, tokenizer: Any, rows: list[list[str]], data: st.DataObject
) -> None:
    """Whatever another row says, what the model makes of this one is the same to the bit."""
    dataset = encoded(tokenizer, rows=rows)
    batch = pack(dataset, indices=np.arange(dataset.num_sequences), device=CPU)
    lengths = batch.options["segments"].lengths
    kept = data.draw(st.integers(0, len(lengths) - 1))
    start = sum(lengths[:kept])
    inside = torch.arange(batch.input_ids.shape[1])
    is_inside = (inside >= start) & (inside < start + lengths[kept])
    other = torch.where(is_inside, batch.input_ids, (batch.input_ids + 1) % model.config.vocab_size)
    use_packed_attention(model)
    with torch.no_grad():
        states = [
            model.base_model(input_ids=ids, use_cache=False, **batch.options).last_hidden_state[0]
            for ids in (batch.input_ids, other)
        ]
    model.set_attn_implementation("sdpa")
    assert torch.equal(states[0][is_inside], states[1][is_inside])
    assert not torch.equal(states[0], states[1]) or len(lengths) == 1


def test_the_gradient_is_that_of_the_padded_rows(model: Any, dataset: TokenizedDataset) -> None:
    found = []
    for make in (collate, pack):
        if make is pack:
            use_packed_attention(model)
        batch = make(dataset, indices=np.arange(8), device=CPU)
        (answer_loss_sum(model, batch=batch) / batch.num_answers).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    for expected, gradient in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    _key_starts: torch.Tensor,
    longest: int,
    _longest_key: int,
    *,
    window_size: tuple[int, int],
    scale: float,
    enable_gqa: bool,
) -> torch.Tensor:
    """What PyTorch's kernel promises for its arguments, by explicit scores."""
    assert window_size == (-1, 0)
    assert starts.dtype == torch.int32
    assert longest == int(starts.diff().max())
    rows = []
    for low, high in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        q, k, v = (tensor[low:high].transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        is_seen = torch.ones(high - low, high - low, dtype=torch.bool).tril()
        rows.append(
            functional.scaled_dot_product_attention(
                q, k, v, attn_mask=is_seen, scale=scale, enable_gqa=enable_gqa
            )[0].transpose(0, 1)
        )
    return torch.cat(rows)


def test_the_kernel_is_called_so_that_it_gives_the_same(
    model: Any, dataset: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack(dataset, indices=np.arange(8), device=CPU)
    use_packed_attention(model)
    expected = answer_loss_sum(model, batch=batch).item()
    calls = []

    def kernel(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return row_by_row(*arguments, **options)

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_has_kernel", lambda _value: True)
    assert answer_loss_sum(model, batch=batch).item() == pytest.approx(expected, rel=1e-5)
    assert len(calls) == model.config.num_hidden_layers


def test_queries_and_keys_take_the_type_of_the_arithmetic_for_the_kernel(
    model: Any, dataset: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    types: set[torch.dtype] = set()

    def kernel(*arguments: Any, **options: Any) -> torch.Tensor:
        types.update(tensor.dtype for tensor in arguments[:3])
        return row_by_row(*arguments, **options)

    use_packed_attention(model)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_has_kernel", lambda _value: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer_loss_sum(model, batch=pack(dataset, indices=np.arange(4), device=CPU))
    assert types == {torch.bfloat16}


def test_a_pack_that_ran_out_of_memory_is_split_and_gives_the_same_gradient(
    model: Any, dataset: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, warnings, indices = losses.answer_loss_sum, list[str](), np.arange(8)
    use_packed_attention(model)

    def gradients() -> list[torch.Tensor]:
        hyperparameters = Hyperparameters(max_grad_norm=1e9)
        runner = StepRunner(
            model,
            optimizer=make_optimizer(model, hyperparameters=hyperparameters),
            dataset=dataset,
            hyperparameters=hyperparameters,
            device=CPU,
            dtype=torch.float32,
            warn=warnings.append,
            is_packed=True,
        )
        taken: list[torch.Tensor] = []
        monkeypatch.setattr(
            runner, "_move", lambda: taken.extend(one.grad.clone() for one in model.parameters())
        )
        runner.take(indices, step=1, learning_rate=1e-3)
        model.zero_grad()
        return taken

    whole = gradients()
    most = int(dataset.lengths[indices].sum()) // 3

    def fail_above(model: Any, *, batch: Any, **options: Any) -> torch.Tensor:
        if len(batch.options["segments"].lengths) > 1 and batch.num_tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, batch=batch, **options)

    monkeypatch.setattr(losses, "answer_loss_sum", fail_above)
    for expected, gradient in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert "packed" in warnings[0]


PACKED = {"environment": {"batching": "packed"}}


def test_a_packed_run_that_was_stopped_goes_on_to_the_same_bits(
    engine: MakeEngine, job: JobFactory, tmp_path: Path, said: list[ChildMessage]
) -> None:
    whole = engine().run_job(job(**PACKED, output={"checkpoints_dir": str(tmp_path / "whole")}))
    engine(control=ScriptedControl(after_steps=3)).run_job(job(**PACKED))
    resumed = engine().run_job(job(**PACKED))
    weights = {verify(Path(str(one.final_checkpoint))).weights_sha256 for one in (whole, resumed)}
    assert len(weights) == 1
    assert [one.resumed_from_step for one in said if isinstance(one, Started)] == [None, None, 3]
    assert not [one for one in said if isinstance(one, Warned)]


def test_a_packed_run_saves_the_same_model_configuration(
    engine: MakeEngine, job: JobFactory, tmp_path: Path
) -> None:
    configurations = []
    for batching in ("packed", "buckets"):
        result = engine().run_job(
            job(
                environment={"batching": batching},
                output={"checkpoints_dir": str(tmp_path / batching)},
            )
        )
        configurations.append(json.loads((Path(str(result.final_checkpoint)) / "config.json").read_text()))
    assert configurations[0] == configurations[1]


def test_packed_and_bucketed_are_two_runs(engine: MakeEngine, job: JobFactory) -> None:
    engine(control=ScriptedControl(after_steps=2)).run_job(job(**PACKED))
    with pytest.raises(ConfigError, match="of a run with other"):
        engine().run_job(job())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sliding_window": 128, "use_sliding_window": True}, "limited number of tokens"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"attn_logit_softcapping": 50.0}, "caps its attention scores"),
    ],
)
def test_a_model_with_another_attention_is_not_packed(
    model_directory: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    config = json.loads((model_directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConfigError, match=named):
        wants_packing("packed", device=CPU, dtype=torch.float32, model=tmp_path)
    assert not wants_packing("auto", device=CPU, dtype=torch.float32, model=tmp_path)


def test_on_a_cpu_rows_of_like_length_stay_together_unless_asked_otherwise(model_directory: Path) -> None:
    choices = ("auto", "buckets", "packed")
    assert [
        wants_packing(choice, device=CPU, dtype=torch.bfloat16, model=model_directory)  # type: ignore[arg-type]
        for choice in choices
    ] == [False, False, True]


@pytest.mark.parametrize(("capability", "is_packed"), [((8, 9), True), ((7, 5), False)])
def test_on_cuda_the_card_decides(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_packed: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    device = torch.device("cuda")
    assert wants_packing("auto", device=device, dtype=torch.bfloat16, model=model_directory) is is_packed
    assert not wants_packing("auto", device=device, dtype=torch.float32, model=model_directory)


SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("family", "changes"),
    [("qwen3", {"num_key_value_heads": 1, "head_dim": 8}), ("llama", {"num_key_value_heads": 1})],
)
def test_families_that_leave_attention_to_us_are_packed(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    AutoConfig.for_model(family, **SMALL, **changes).save_pretrained(tmp_path)
    assert wants_packing("packed", device=CPU, dtype=torch.float32, model=tmp_path)
    assert suits_packing(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("mamba", {}, "carries a state"),
        ("mamba2", {"num_heads": 4, "head_dim": 8}, "carries a state"),
        ("recurrent_gemma", {}, "carries a state"),
        ("jamba", {}, "carries a state"),
        ("bloom", {}, "cannot be replaced"),
        ("falcon", {"alibi": False}, "cannot be replaced"),
        ("falcon", {"alibi": True}, "cannot be replaced"),
        ("doge", {}, "cannot be replaced"),
        ("nemotron", {}, "cannot be replaced"),
    ],
)
def test_a_family_whose_rows_tell_of_each_other_is_named_and_takes_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any], reason: str
) -> None:
    AutoConfig.for_model(family, **SMALL, **changes).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"is of the family {family}, .*{reason}"):
        wants_packing("packed", device=CPU, dtype=torch.float32, model=tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert not wants_packing("auto", device=torch.device("cuda"), dtype=torch.bfloat16, model=tmp_path)
    assert not suits_packing(tmp_path)


def test_a_family_that_transformers_does_not_know_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of_tomorrow"}')
    with pytest.raises(ConfigError, match="of_tomorrow, which transformers does not know"):
        wants_packing("packed", device=CPU, dtype=torch.float32, model=tmp_path)


def small(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **changes)).train()


@pytest.mark.parametrize(("family", "changes"), [("gpt2", {}), ("llama", {"num_key_value_heads": 1})])
def test_a_model_that_keeps_its_rows_apart_stays_in_training_mode(
    family: str, changes: dict[str, Any]
) -> None:
    model = small(family, **changes)
    use_packed_attention(model)
    assert model.training


def test_a_class_that_promises_too_much_is_found_out_before_it_learns() -> None:
    """Nemotron lets the attention be replaced, but its layers do not hand on what tells the rows apart."""
    with pytest.raises(ConfigError, match="nemotron, whose packed rows tell of each other"):
        use_packed_attention(small("nemotron", intermediate_size=32, num_key_value_heads=1))
