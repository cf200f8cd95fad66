"""How much memory a training job needs, part by part, before anything is loaded.

Weights, gradients and AdamW's two moments are kept in float32: 16 bytes a parameter. In bfloat16 the
arithmetic adds a half copy of each matrix, kept until the backward pass. What a decoder layer keeps for its
backward pass was counted tensor by tensor (`tests/trainer/core/test_memory_estimate.py` counts it again):
per token two norms and their results, what each projection reads, queries and keys before and after their
norms and as rotated, values, what attention returns, and four values of the gated MLP's width. Fused
attention writes no matrix of scores. With gradient checkpointing (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost") a layer keeps its input alone, and layers are computed again one after another.

Logits cost three float32 values an answer token and vocabulary entry: log-probabilities, the gradient of the
loss, and that of the logits.

The peak is that of the most expensive of three moments, since they do not fall together: the loss, with all
activations; the first layer that goes backward; and the end of the backward pass, with all gradients.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from registry.model_shapes import ModelShape
from registry.records import Record
from trainer.adapter_sizes import adapted_values, adapter_values, kept_by_adapters
from trainer.config.adapter import AdapterConfig

Arithmetic = Literal["float32", "bfloat16"]

FULL, HALF = 4, 2  # bytes of a value
MOMENTS = 2
LOSS_VALUES = 3
# A layer is computed again before the one after it let go of everything: two were seen to lie there.
COMPUTED_AGAIN = 2
# Interpreter, PyTorch and transformers: 396 to 405 MB were measured in a CPU process. On CUDA its context and
# libraries, not measured.
RUNTIME_BYTES: dict[str, int] = {"cpu": 410_000_000, "cuda": 700_000_000}
# What an allocator holds beyond what a step asks of it: the C library's heap was seen to hold 15 to 28 % more
# (benchmarks/memory.py). CUDA's share is not measured.
ALLOCATOR_SHARE: dict[str, float] = {"cpu": 0.25, "cuda": 0.05}


class TrainingMode(Record):
    """How a step is computed. `is_split`: in several parts, so that gradients lie beside activations."""

    device: Literal["cpu", "cuda"] = "cuda"
    arithmetic: Arithmetic = "bfloat16"
    checkpoints_gradients: bool = True
    is_split: bool = True
    adapter: AdapterConfig | None = Field(default=None, description="full fine-tuning if left out")


class TrainingMemory(Record):
    """Bytes of each part of a step, and of the whole at its worst moment."""

    runtime: int = Field(ge=0)
    weights: int = Field(ge=0)
    half_weights: int = Field(ge=0)
    gradients: int = Field(ge=0)
    optimizer: int = Field(ge=0)
    activations: int = Field(ge=0)
    attention: int = Field(ge=0)
    backward: int = Field(ge=0, description="gradients of activations, while they are needed")
    loss: int = Field(ge=0)
    allocator: int = Field(ge=0)
    peak: int = Field(ge=0)


def training_memory(
    shape: ModelShape, *, num_tokens: int, num_answers: int | None = None, mode: TrainingMode
) -> TrainingMemory:
    """Of a step in parts of at most `num_tokens` tokens with padding.

    `num_answers` is how many of them are learnt: all of them, where that is not known.
    """
    trained = _trained_values(shape, mode=mode)
    gradients = FULL * trained
    weights, half_weights = _weights(shape, trained=trained, mode=mode)
    kept = _kept_layers(shape, num_tokens=num_tokens, mode=mode)
    again = COMPUTED_AGAIN * _layer(shape, mode=mode) * num_tokens if mode.checkpoints_gradients else 0
    attention = _attention(shape, mode=mode) * num_tokens
    attention *= COMPUTED_AGAIN if mode.checkpoints_gradients else shape.num_layers
    backward = _backward(shape, mode=mode) * num_tokens
    loss = loss_bytes(shape, num_answers=num_tokens if num_answers is None else num_answers)
    head = FULL * shape.hidden_size * shape.vocab_size if mode.adapter is None else 0
    early = gradients if mode.is_split else 0  # gradients that lie there before the last part begins
    moments = (early + kept + loss, max(early, head) + kept + again + backward, gradients + head)
    dynamic = half_weights + max(moments)
    allocator = int(ALLOCATOR_SHARE[mode.device] * dynamic)
    runtime = RUNTIME_BYTES[mode.device]
    return TrainingMemory(
        runtime=runtime,
        weights=weights,
        half_weights=half_weights,
        gradients=gradients,
        optimizer=MOMENTS * gradients,
        activations=max(0, kept + again - attention),
        attention=attention,
        backward=backward,
        loss=loss,
        allocator=allocator,
        peak=runtime + weights + MOMENTS * gradients + dynamic + allocator,
    )


def training_bytes(shape: ModelShape, *, tokens_per_batch: int, mode: TrainingMode) -> int:
    """The peak of the same, where every token may be learnt."""
    return training_memory(shape, num_tokens=tokens_per_batch, mode=mode).peak


def smallest_training_bytes(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Of the same with the smallest parts that a step can be split into: below this nothing trains."""
    return training_bytes(shape, tokens_per_batch=1, mode=mode)


def largest_token_budget(
    shape: ModelShape, *, capacity_bytes: int, mode: TrainingMode, answer_share: float = 1.0
) -> int:
    """The most tokens a part may have on a device with so many bytes to give; 0 where not one fits.

    `answer_share` is the share of them that are learnt, at most.
    """
    low, high = 0, 1
    while _fits(shape, high, capacity_bytes=capacity_bytes, mode=mode, answer_share=answer_share):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(shape, middle, capacity_bytes=capacity_bytes, mode=mode, answer_share=answer_share):
            low = middle
        else:
            high = middle
    return low


def loss_bytes(shape: ModelShape, *, num_answers: int) -> int:
    """Of the loss: hidden states that were picked, and three values a vocabulary entry."""
    return FULL * num_answers * (shape.hidden_size + LOSS_VALUES * shape.vocab_size)


def logits_bytes(*, num_tokens: int, vocab_size: int, value_bytes: int) -> int:
    """Of the logits of every token, as a trainer makes them that does not pick answers first."""
    return num_tokens * vocab_size * value_bytes


def _trained_values(shape: ModelShape, *, mode: TrainingMode) -> int:
    if mode.adapter is None:
        return shape.num_parameters
    return adapter_values(shape, adapter=mode.adapter)


def _weights(shape: ModelShape, *, trained: int, mode: TrainingMode) -> tuple[int, int]:
    """Bytes of all weights, and of the half copies that a step makes of those that lie in float32."""
    if mode.arithmetic == "float32":
        return FULL * (shape.num_parameters + (trained if mode.adapter else 0)), 0
    matrices = _matrix_values(shape)
    if mode.adapter is None:
        return FULL * shape.num_parameters, HALF * matrices
    # What stays lies in bfloat16, but for embedding and norms.
    head = shape.hidden_size * shape.vocab_size
    staying = adapted_values(shape, adapter=mode.adapter)
    return (
        FULL * (shape.num_parameters + trained) - (FULL - HALF) * staying,
        HALF * (matrices - staying + trained) if staying < matrices - head else HALF * (head + trained),
    )


def _fits(
    shape: ModelShape, num_tokens: int, *, capacity_bytes: int, mode: TrainingMode, answer_share: float
) -> bool:
    num_answers = -int(-answer_share * num_tokens // 1)
    memory = training_memory(shape, num_tokens=num_tokens, num_answers=num_answers, mode=mode)
    return memory.peak <= capacity_bytes


def _kept_layers(shape: ModelShape, *, num_tokens: int, mode: TrainingMode) -> int:
    """What lies there when the forward pass is done, the last norm and the hidden states included."""
    layer = FULL * shape.hidden_size if mode.checkpoints_gradients else _layer(shape, mode=mode)
    rest = FULL * (3 * shape.hidden_size + 1)
    return num_tokens * (shape.num_layers * layer + rest)


def _layer(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    norms = 4 * FULL * hidden + 2 * FULL
    adapters = 0 if mode.adapter is None else kept_by_adapters(shape, adapter=mode.adapter)
    if mode.arithmetic == "float32":
        return norms + 2 * FULL * hidden + _attention(shape, mode=mode) + 4 * FULL * wide + FULL * adapters
    # Each of five projections reads a half copy of its own.
    return norms + 5 * HALF * hidden + _attention(shape, mode=mode) + 4 * HALF * wide + HALF * adapters


def _attention(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Queries, keys, values, what attention returns, and one logarithm a head."""
    queries, keys = shape.num_queries, shape.num_key_values // 2
    scalars = FULL * (2 * shape.num_heads + shape.num_key_value_heads)
    if mode.arithmetic == "float32":
        return 4 * FULL * (queries + keys) + scalars
    return (FULL + 3 * HALF) * (queries + keys) + scalars


def _backward(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Bytes a token of the gradients in the MLP, the widest place, while a layer goes backward."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    if mode.arithmetic == "bfloat16" and mode.device == "cuda":
        return 3 * HALF * wide + 2 * FULL * hidden
    # On a CPU bfloat16 was seen to need float32 room for what goes in and comes out of a product as well.
    copies = 2 * FULL * wide if mode.arithmetic == "bfloat16" else 0
    return 3 * FULL * wide + 2 * FULL * hidden + copies


def _matrix_values(shape: ModelShape) -> int:
    hidden = shape.hidden_size
    attention = hidden * (2 * shape.num_queries + shape.num_key_values)
    return shape.num_layers * (attention + 3 * hidden * shape.intermediate_size) + hidden * shape.vocab_size
