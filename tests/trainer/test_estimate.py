from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.estimate import running_bytes
from registry.model_shapes import ModelShape
from registry.testing import make_shape
from trainer.config.adapter import AdapterConfig
from trainer.cross_entropy import CrossEntropy
from trainer.estimate import (
    TrainingMode,
    largest_token_budget,
    logits_bytes,
    loss_bytes,
    smallest_training_bytes,
    training_bytes,
    training_memory,
)

GB = 10**9
QWEN = make_shape()
SMALL = ModelShape(
    num_parameters=14_637_888,
    hidden_size=320,
    intermediate_size=960,
    num_layers=6,
    num_heads=10,
    num_key_value_heads=1,
    head_size=64,
    vocab_size=20_000,  # an embedding just small enough for the heap, logits that are not
)
MODE = TrainingMode()
PLAIN = TrainingMode(cross_entropy="plain")
MODES = [
    TrainingMode(arithmetic=arithmetic, checkpoints_gradients=checkpoints)
    for arithmetic in ("float32", "bfloat16")
    for checkpoints in (False, True)
]


def test_19_rows_of_4096_tokens_have_logits_of_23_6_gigabytes() -> None:
    num_bytes = logits_bytes(num_tokens=19 * 4096, vocab_size=QWEN.vocab_size, value_bytes=2)
    assert round(num_bytes / GB, 1) == 23.6


def test_the_states_of_qwen_are_16_bytes_a_parameter() -> None:
    memory = training_memory(QWEN, num_tokens=1, mode=MODE)
    states = memory.weights + memory.gradients + memory.optimizer
    assert states == 16 * QWEN.num_parameters
    assert memory.half_weights == 2 * 595_984_384  # every matrix; norms stay whole


def test_qwen_of_600_million_fits_a_card_of_24_gigabytes_with_4096_tokens_and_plain_logits() -> None:
    assert 16 * GB < training_bytes(QWEN, tokens_per_batch=4096, mode=PLAIN) < 24 * GB
    assert training_bytes(QWEN, tokens_per_batch=8192, mode=PLAIN) > 24 * GB
    kept = PLAIN.changed(checkpoints_gradients=False)
    assert training_bytes(QWEN, tokens_per_batch=4096, mode=kept) > 24 * GB


def test_in_chunks_it_fits_with_32768() -> None:
    assert training_bytes(QWEN, tokens_per_batch=32_768, mode=MODE) < 24 * GB
    assert training_bytes(QWEN, tokens_per_batch=65_536, mode=MODE) > 24 * GB


def test_the_floor_is_the_18_bytes_a_parameter_that_are_published_for_mixed_precision() -> None:
    # huggingface.co/docs/transformers/v5.14.0/model_memory_anatomy: 6 of weights, 8 of AdamW, 4 of gradients
    memory = training_memory(QWEN, num_tokens=1, mode=MODE)
    states = memory.weights + memory.half_weights + memory.gradients + memory.optimizer
    assert states == pytest.approx(18 * QWEN.num_parameters, rel=0.001)


@pytest.mark.parametrize("kind", ["chunked", "liger"])
def test_a_chunked_loss_grows_with_hidden_states_and_not_with_logits(kind: CrossEntropy) -> None:
    mode = MODE.changed(cross_entropy=kind)
    one, two = (loss_bytes(QWEN, num_answers=number, mode=mode) for number in (16_384, 32_768))
    assert two - one < 16_384 * QWEN.hidden_size * 14
    assert one < loss_bytes(QWEN, num_answers=16_384, mode=PLAIN) / 20


def test_large_blocks_leave_no_holes_in_the_heap_of_a_cpu_process() -> None:
    mode = TrainingMode(device="cpu", arithmetic="float32", checkpoints_gradients=False, is_split=False)
    narrow = {"hidden_size": 64, "intermediate_size": 192, "num_heads": 2, "num_key_value_heads": 1}
    small = QWEN.changed(num_parameters=9_900_000, num_layers=2, head_size=64, **narrow)
    large = training_memory(small, num_tokens=1000, mode=mode)
    assert large.allocator < 0.05 * large.peak
    tiny = training_memory(small.changed(vocab_size=2000, num_parameters=300_000), num_tokens=1000, mode=mode)
    assert tiny.allocator > 0.15 * (tiny.peak - tiny.runtime - tiny.allocator)


def test_what_the_heap_held_for_gradients_lies_beside_the_logits_of_the_next_step() -> None:
    mode = TrainingMode(device="cpu", arithmetic="float32", is_split=False)
    memory = training_memory(SMALL, num_tokens=710, num_answers=645, mode=mode)
    # 524, 534 and 536 MB were measured (benchmarks/memory.py); 299 of them were in use at most.
    assert memory.peak - memory.runtime == pytest.approx(530e6, rel=0.15)
    gradients, mapped = memory.gradients, memory.loss
    heap = memory.optimizer + gradients
    assert memory.peak - memory.runtime > memory.weights + heap + mapped


@pytest.mark.parametrize("mode", MODES)
def test_the_states_are_a_floor_that_no_batch_goes_below(mode: TrainingMode) -> None:
    floor = smallest_training_bytes(QWEN, mode=mode)
    assert 10 * GB < floor < 13 * GB
    assert training_bytes(QWEN, tokens_per_batch=100, mode=mode) >= floor
    assert training_bytes(QWEN, tokens_per_batch=4096, mode=mode) > floor


def test_answers_alone_cost_logits() -> None:
    every = training_memory(QWEN, num_tokens=4096, mode=PLAIN)
    few = training_memory(QWEN, num_tokens=4096, num_answers=64, mode=PLAIN)
    assert few.loss == loss_bytes(QWEN, num_answers=64, mode=PLAIN)
    assert few.peak < every.peak - 6 * GB


@pytest.mark.parametrize("mode", MODES)
@given(capacity_bytes=st.integers(8 * GB, 200 * GB), answer_share=st.floats(0.01, 1))
def test_the_largest_budget_fits_and_one_token_more_does_not(
    mode: TrainingMode, capacity_bytes: int, answer_share: float
) -> None:
    tokens = largest_token_budget(QWEN, capacity_bytes=capacity_bytes, mode=mode, answer_share=answer_share)

    def peak(num_tokens: int) -> int:
        num_answers = -int(-answer_share * num_tokens // 1)
        return training_memory(QWEN, num_tokens=num_tokens, num_answers=num_answers, mode=mode).peak

    assert tokens == 0 or peak(tokens) <= capacity_bytes
    assert peak(tokens + 1) > capacity_bytes


def test_running_a_model_takes_a_fraction_of_training_it() -> None:
    assert 3 * GB < running_bytes(QWEN) < smallest_training_bytes(QWEN, mode=MODE)


def test_a_copy_that_is_written_beside_the_steps_counts_where_it_lies_on_the_same_device() -> None:
    options = {"arithmetic": "float32", "checkpoints_gradients": False}
    for device, bytes_a_parameter in (("cpu", 12), ("cuda", 0)):
        alone = TrainingMode.model_validate({**options, "device": device})
        copied = alone.changed(copies_state=True)
        more = training_bytes(QWEN, tokens_per_batch=64, mode=copied) - training_bytes(
            QWEN, tokens_per_batch=64, mode=alone
        )
        assert more == bytes_a_parameter * QWEN.num_parameters


def test_adapters_need_no_more_than_a_third_of_full_fine_tuning() -> None:
    full = smallest_training_bytes(QWEN, mode=MODE)
    lora = training_memory(QWEN, num_tokens=1, mode=MODE.changed(adapter=AdapterConfig()))
    # Rank times what goes in and comes out of seven projections, in 28 layers.
    num_trained = 28 * 16 * (3072 + 2 * 2048 + 3072 + 3 * 4096)
    assert lora.gradients == 4 * num_trained
    assert lora.optimizer == 8 * num_trained
    assert lora.weights < 0.65 * 4 * QWEN.num_parameters  # matrices that stay are in bfloat16
    assert lora.peak < full / 3


def test_named_layers_alone_are_counted_and_foreign_names_count_as_all() -> None:
    sizes = {
        names: training_memory(
            QWEN, num_tokens=100, mode=MODE.changed(adapter=AdapterConfig(target_modules=names))
        ).gradients
        for names in (("q_proj",), ("q_proj", "v_proj"), ("c_attn",), None)
    }
    assert sizes["q_proj",] < sizes["q_proj", "v_proj"] < sizes["c_attn",] == sizes[None]


# Of matrices too large for the C library's heap; with 1024 wide ones fsdp saves hardly anything on a CPU.
WIDE = QWEN.changed(hidden_size=2048, intermediate_size=6144, num_parameters=1_720_574_976)


@pytest.mark.parametrize(
    ("shape", "device", "arithmetic"),
    [(QWEN, "cuda", "bfloat16"), (WIDE, "cuda", "bfloat16"), (WIDE, "cpu", "float32")],
)
@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 2048])
def test_the_more_share_a_model_the_less_each_needs_but_never_a_mere_part(
    shape: ModelShape, device: Any, arithmetic: Any, checkpoints: bool, num_tokens: int
) -> None:
    mode = TrainingMode(device=device, arithmetic=arithmetic, checkpoints_gradients=checkpoints)
    alone, *others = (
        training_memory(shape, num_tokens=num_tokens, mode=mode.changed(num_shards=number))
        for number in (1, 2, 4, 8)
    )
    assert alone == training_memory(shape, num_tokens=num_tokens, mode=mode)
    assert alone.peak > others[0].peak > others[1].peak > others[2].peak > alone.peak / 8
    for number, memory in zip((2, 4, 8), others, strict=True):
        assert memory.optimizer == pytest.approx(alone.optimizer / number, abs=16)
        # The embedding and a layer are whole while they are used.
        table = 4 * shape.hidden_size * shape.vocab_size
        assert memory.weights > alone.weights / number + table
        assert memory.gradients > alone.gradients / number


def test_one_shard_gives_the_numbers_of_before_there_were_any() -> None:
    on_card = training_memory(QWEN, num_tokens=2048, mode=MODE)
    on_cpu = training_memory(
        QWEN, num_tokens=2048, mode=TrainingMode(device="cpu", arithmetic="float32", is_split=False)
    )
    assert (on_card.peak, on_cpu.peak) == (12_659_477_401, 12_683_372_364)
    in_heap = training_memory(SMALL, num_tokens=1, mode=TrainingMode(device="cpu", arithmetic="float32"))
    assert in_heap.peak == 781_028_070


@pytest.mark.parametrize(("num_processes", "measured"), [(2, (506, 470)), (4, (459, 414, 441, 391))])
def test_on_a_cpu_the_heap_holds_what_layers_were_put_together_in(
    num_processes: int, measured: tuple[int, ...]
) -> None:
    """Beside what was measured of small matrices, in MB of each process, before the model taken off."""
    shape = ModelShape(
        num_parameters=21_871_872,
        hidden_size=512,
        intermediate_size=1536,
        num_layers=6,
        num_heads=16,
        num_key_value_heads=1,
        head_size=64,
        vocab_size=2000,
    )
    mode = TrainingMode(
        device="cpu",
        arithmetic="float32",
        checkpoints_gradients=False,
        is_split=False,
        num_shards=num_processes,
    )
    memory = training_memory(shape, num_tokens=168, num_answers=128, mode=mode)
    assert num_processes * (memory.peak - memory.runtime) == pytest.approx(1e6 * sum(measured), rel=0.15)


def test_what_no_layer_owns_is_fetched_whole_and_counts_twice_where_it_is_not_tied() -> None:
    table = QWEN.hidden_size * QWEN.vocab_size
    untied = QWEN.changed(num_parameters=QWEN.num_parameters + table)
    tied, two = (
        training_memory(shape, num_tokens=1, mode=MODE.changed(num_shards=2)).weights
        for shape in (QWEN, untied)
    )
    assert two - tied == pytest.approx(4 * table + 4 * table / 2, rel=0.001)


def test_on_a_cpu_the_first_process_puts_a_checkpoint_together_in_the_memory_of_all() -> None:
    mode = TrainingMode(device="cpu", arithmetic="float32", num_shards=2)
    together = 2 * (training_memory(QWEN, num_tokens=1, mode=mode).peak)
    # 12 bytes a parameter that all keep, and 12 that the first one holds whole.
    assert together > 24 * QWEN.num_parameters


def test_merging_adapters_counts_where_the_merged_matrices_lie() -> None:
    adapted = MODE.changed(device="cpu", arithmetic="float32", adapter=AdapterConfig())
    merged = 4 * 28 * (1024 * (2 * 2048 + 2 * 1024) + 3 * 1024 * 3072)
    memory = training_memory(QWEN, num_tokens=1, mode=adapted)
    assert memory.peak - memory.runtime - memory.allocator > memory.weights + memory.optimizer + merged
    on_a_card = training_memory(QWEN, num_tokens=1, mode=MODE.changed(adapter=AdapterConfig()))
    assert on_a_card.peak < memory.peak - merged / 2
