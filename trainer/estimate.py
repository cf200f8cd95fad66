"""How much memory a training job needs, part by part, before anything is loaded.

Weights, gradients and AdamW's two moments are kept in float32: 16 bytes a parameter. In bfloat16 the
arithmetic adds a half copy of each matrix, kept until the backward pass. What a decoder layer keeps for its
backward pass was counted tensor by tensor (`tests/trainer/core/test_memory_estimate.py` counts it again):
per token two norms and their results, what each projection reads, queries and keys before and after their
norms and as rotated, values, what attention returns, and four values of the gated MLP's width. Layers that
are fused (`trainer/core/fused_layers.py`) keep nothing of what was before a norm; the last of them keeps of
answers alone what lies behind its attention. Fused attention writes no matrix of scores. With gradient
checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost") a layer keeps its input
alone, and layers are computed again one after another.

Plain logits cost three float32 values an answer token and vocabulary entry: log-probabilities, the gradient
of the loss, and that of the logits. In chunks they cost one, of a chunk's answers, and the gradient of the
projection lies there while they are made.

The peak is that of the most expensive of three moments, since they do not fall together: the loss, with all
activations; the first layer that goes backward; and the end of the backward pass, with all gradients. A tied
projection's gradient waits until then for that of the embedding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import Field

from registry.model_shapes import ModelShape
from registry.records import Record
from trainer.adapter_sizes import adapted_values, adapter_values, kept_by_adapters, while_merging
from trainer.allocator_sizes import FULL, HALF, Part, allocator_bytes, total
from trainer.config.adapter import AdapterConfig
from trainer.cross_entropy import CrossEntropy, answers_per_chunk, is_chunked
from trainer.layers import fuses_layers
from trainer.shard_sizes import gathered_weights, last_gradients, moments_outside, reduced_gradients, sharded

Arithmetic = Literal["float32", "bfloat16"]
MOMENTS = 2
LOSS_VALUES = 3
# A layer is computed again before the one after it let go of everything: two were seen to lie there.
COMPUTED_AGAIN = 2
# Interpreter, PyTorch and transformers: 396 to 405 MB were measured in a CPU process. On CUDA its context and
# libraries, not measured.
RUNTIME_BYTES: dict[str, int] = {"cpu": 410_000_000, "cuda": 700_000_000}


class TrainingMode(Record):
    """How a step is computed. `is_split`: in several parts, so that gradients lie beside activations.

    `copies_state`: steps go on while a copy of weights and moments is written. On CUDA it lies outside.
    `num_shards`: processes that each keep a part of weights, gradients and moments; what is estimated is one.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    arithmetic: Arithmetic = "bfloat16"
    checkpoints_gradients: bool = True
    is_split: bool = True
    copies_state: bool = False
    cross_entropy: CrossEntropy = "auto"
    adapter: AdapterConfig | None = Field(default=None, description="full fine-tuning if left out")
    num_shards: int = Field(default=1, ge=1, description="1: the whole model is kept, however many processes")

    @property
    def fuses_layers(self) -> bool:
        """Norms and rotated heads keep less; see `trainer/core/fused_layers.py`."""
        return fuses_layers(device=self.device, arithmetic=self.arithmetic)


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
    snapshot: int = Field(default=0, ge=0, description="the copy that a checkpoint is written from")
    peak: int = Field(ge=0)


def training_memory(
    shape: ModelShape, *, num_tokens: int, num_answers: int | None = None, mode: TrainingMode
) -> TrainingMemory:
    """Of a step in parts of at most `num_tokens` tokens with padding.

    `num_answers` is how many of them are learnt: all of them, where that is not known.
    """
    num_answers = num_tokens if num_answers is None else num_answers
    weights, trained = _weights(shape, mode=mode), _of_trained(shape, times=1, mode=mode)
    gathered = gathered_weights(shape, num_shards=mode.num_shards, device=mode.device)
    reduced = reduced_gradients(shape, num_shards=mode.num_shards, device=mode.device)
    kept = _kept_layers(shape, num_tokens=num_tokens, num_answers=num_answers, mode=mode)
    again = COMPUTED_AGAIN * _layer(shape, mode=mode) * num_tokens if mode.checkpoints_gradients else 0
    attention = _attention(shape, mode=mode) * num_tokens
    attention *= COMPUTED_AGAIN if mode.checkpoints_gradients else shape.num_layers
    backward = _backward(shape, num_tokens=num_tokens, num_answers=num_answers, mode=mode)
    loss = _loss(shape, num_answers=num_answers, mode=mode)
    moments = _moments(
        shape, num_tokens=num_tokens, kept=kept, again=again, backward=backward, loss=loss, mode=mode
    )
    worst = max(moments, key=total)
    states = [*weights, *_of_trained(shape, times=MOMENTS, mode=mode)]
    is_half = mode.arithmetic == "bfloat16"
    allocator = allocator_bytes(states, moments=moments, device=mode.device, is_half=is_half)
    runtime = RUNTIME_BYTES[mode.device]
    return TrainingMemory(
        runtime=runtime,
        weights=total([*weights, *gathered]),
        half_weights=sum(_half_weights(shape, mode=mode)),
        gradients=total([*trained, *reduced]),
        optimizer=MOMENTS * total(trained),
        activations=max(0, kept + again - attention),
        attention=attention,
        backward=backward,
        loss=total(loss),
        allocator=allocator,
        snapshot=(snapshot := _snapshot(shape, mode=mode)),
        peak=runtime + total([*states, *worst]) + allocator + snapshot,
    )


@lru_cache(maxsize=256)
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


def loss_bytes(shape: ModelShape, *, num_answers: int, mode: TrainingMode) -> int:
    """Of the loss: hidden states that were picked, logits, and what lies there while these are made."""
    return total(_loss(shape, num_answers=num_answers, mode=mode))


def logits_bytes(*, num_tokens: int, vocab_size: int, value_bytes: int) -> int:
    """Of the logits of every token, as a trainer makes them that does not pick answers first."""
    return num_tokens * vocab_size * value_bytes


def _fits(
    shape: ModelShape, num_tokens: int, *, capacity_bytes: int, mode: TrainingMode, answer_share: float
) -> bool:
    num_answers = -int(-answer_share * num_tokens // 1)
    memory = training_memory(shape, num_tokens=num_tokens, num_answers=num_answers, mode=mode)
    return memory.peak <= capacity_bytes


def _trained_values(shape: ModelShape, *, mode: TrainingMode) -> int:
    if mode.adapter is None:
        return shape.num_parameters
    return adapter_values(shape, adapter=mode.adapter)


def _weights(shape: ModelShape, *, mode: TrainingMode) -> list[Part]:
    """All weights, or a share: in float32, but for the matrices beside which adapters learn in bfloat16."""
    (layers, block), table = _of_weights(shape, times=1)
    adapters: list[Part] = []
    if mode.adapter is not None:
        is_half = mode.arithmetic == "bfloat16"
        layers -= (FULL - HALF) * adapted_values(shape, adapter=mode.adapter) if is_half else 0
        adapters = _of_trained(shape, times=1, mode=mode)
    return [*sharded([(layers, block), table], num_shards=mode.num_shards), *adapters]


def _of_trained(shape: ModelShape, *, times: int, mode: TrainingMode) -> list[Part]:
    """Something in float32 as large as the weights that learn, or a share of them, so many times."""
    if mode.adapter is None:
        return sharded(_of_weights(shape, times=times), num_shards=mode.num_shards)
    size = times * FULL * adapter_values(shape, adapter=mode.adapter)
    return sharded([(size, FULL * mode.adapter.rank * shape.intermediate_size)], num_shards=mode.num_shards)


def _snapshot(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Moments and weights; the weights as they are saved, and what learns as it is kept if that differs."""
    if mode.device != "cpu" or not mode.copies_state:
        return 0
    trained = _trained_values(shape, mode=mode)
    is_half = mode.arithmetic == "bfloat16"
    kept = trained if is_half or mode.adapter is not None else 0
    return FULL * (MOMENTS * trained + kept) + (HALF if is_half else FULL) * shape.num_parameters


def _moments(
    shape: ModelShape,
    *,
    num_tokens: int,
    kept: int,
    again: int,
    backward: int,
    loss: list[Part],
    mode: TrainingMode,
) -> list[list[Part]]:
    """What lies beside the states at each of the three moments of a step, and at those outside of one."""
    table, matrix = _trained_table(shape, mode=mode), FULL * shape.hidden_size * shape.intermediate_size
    activation = FULL * num_tokens * shape.intermediate_size
    half_layers, half_head = _half_weights(shape, mode=mode)
    # Gradients that lie there before the last part begins.
    gradients = _of_trained(shape, times=1, mode=mode)
    early = [*gradients] if mode.is_split else []
    # Autocast keeps its copies for the forward pass; a layer that is computed again makes its own.
    half_again = half_layers
    if mode.checkpoints_gradients:
        half_again = min(half_layers, COMPUTED_AGAIN * half_layers // shape.num_layers)
    tables = (2 if mode.is_split else 1) * table
    num_shards = mode.num_shards
    early += gathered_weights(shape, num_shards=num_shards, device=mode.device)
    reduced = reduced_gradients(shape, num_shards=num_shards, device=mode.device)
    last = [(tables, table)] if num_shards == 1 else last_gradients(shape)
    return [
        [*early, (half_layers, matrix), (half_head, half_head), (kept, activation), *loss],
        [*early, *reduced, (half_again, matrix), (table, table), (kept + again + backward, activation)],
        [*gradients, *last],
        *_moments_outside(shape, mode=mode),
    ]


def _moments_outside(shape: ModelShape, *, mode: TrainingMode) -> list[list[Part]]:
    """Beside the states where that may be most: while shards are loaded and while checkpoints are written."""
    is_half, device = mode.arithmetic == "bfloat16", mode.device
    if mode.num_shards > 1:
        states = total([*_weights(shape, mode=mode), *_of_trained(shape, times=MOMENTS, mode=mode)])
        size = mode.num_shards
        return moments_outside(shape, num_shards=size, device=device, is_half=is_half, states=states)
    if mode.adapter is None:
        return []
    is_copied = _snapshot(shape, mode=mode) > 0
    return [while_merging(shape, adapter=mode.adapter, device=device, is_half=is_half, is_copied=is_copied)]


def _loss(shape: ModelShape, *, num_answers: int, mode: TrainingMode) -> list[Part]:
    hidden, vocabulary = shape.hidden_size, shape.vocab_size
    states = FULL * num_answers * hidden
    if mode.cross_entropy == "liger":
        size = _liger_chunk(num_answers, shape=shape)
    elif is_chunked(mode.cross_entropy, num_answers=num_answers, vocab_size=vocabulary):
        size = answers_per_chunk(num_answers, vocab_size=vocabulary)
    else:
        logits = FULL * num_answers * vocabulary
        return [(states, states), (LOSS_VALUES * logits, logits)]
    is_half = mode.arithmetic == "bfloat16"
    # Products lie beside the chunk in float32; Liger turns them into their gradient where they are.
    values = [HALF] if is_half and mode.cross_entropy == "liger" else [FULL, HALF] if is_half else [FULL]
    chunk = [(size * vocabulary * value, size * vocabulary * value) for value in values]
    halves = states // 2 if is_half else 0
    table = _trained_table(shape, mode=mode)
    return [(2 * states + halves, states), *chunk, (table, table)]


def _of_weights(shape: ModelShape, *, times: int) -> list[Part]:
    """Something as large as the weights, so many times."""
    table = _table(shape)
    matrix = FULL * shape.hidden_size * shape.intermediate_size
    return [(times * max(0, FULL * shape.num_parameters - table), matrix), (times * table, table)]


def _table(shape: ModelShape) -> int:
    """Bytes of the embedding, or of the output projection, or of the gradient of either."""
    return FULL * shape.hidden_size * shape.vocab_size


def _trained_table(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Adapters leave the embedding and the projection as they are."""
    return _table(shape) if mode.adapter is None else 0


def _liger_chunk(num_answers: int, *, shape: ModelShape) -> int:
    """Answers of a chunk, as liger-kernel 0.8 cuts them: about as many logits as hidden states."""
    factor = -(-shape.vocab_size // shape.hidden_size)
    return min(num_answers, 1 << (max(1, -(-num_answers // factor)) - 1).bit_length())


def _kept_layers(shape: ModelShape, *, num_tokens: int, num_answers: int, mode: TrainingMode) -> int:
    """What lies there when the forward pass is done, the last norm included.

    So are the last hidden states, but where these are of answers alone, which the loss counts.
    """
    last_norm, states = _norm(shape, mode=mode) + FULL, FULL * shape.hidden_size
    if mode.checkpoints_gradients:
        layers = num_tokens * shape.num_layers * states
    else:
        last = _last_layer(shape, num_tokens=num_tokens, num_answers=num_answers, mode=mode)
        layers = num_tokens * (shape.num_layers - 1) * _layer(shape, mode=mode) + last
    return layers + (num_answers * last_norm if mode.fuses_layers else num_tokens * (last_norm + states))


def _layer(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    norms = 2 * (_norm(shape, mode=mode) + FULL)
    adapters = 0 if mode.adapter is None else kept_by_adapters(shape, adapter=mode.adapter)
    if mode.arithmetic == "float32":
        return norms + 2 * FULL * hidden + _attention(shape, mode=mode) + 4 * FULL * wide + FULL * adapters
    # Each of five projections reads a half copy of its own.
    return norms + 5 * HALF * hidden + _attention(shape, mode=mode) + 4 * HALF * wide + HALF * adapters


def _last_layer(shape: ModelShape, *, num_tokens: int, num_answers: int, mode: TrainingMode) -> int:
    """Bytes of the last one; where it is fused, of answers its second norm, MLP and what attention gave."""
    if not mode.fuses_layers:
        return num_tokens * _layer(shape, mode=mode)
    behind = _norm(shape, mode=mode) + FULL * (1 + shape.hidden_size + 4 * shape.intermediate_size)
    picked = behind + FULL * shape.num_queries
    return num_tokens * (_layer(shape, mode=mode) - behind) + num_answers * picked


def _norm(shape: ModelShape, *, mode: TrainingMode) -> int:
    """What it normalised, and unless that is fused what it read."""
    return (1 if mode.fuses_layers else 2) * FULL * shape.hidden_size


def _attention(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Queries, keys, values, what attention returns, and one logarithm a head."""
    queries, keys = shape.num_queries, shape.num_key_values // 2
    scalars = FULL * (2 * shape.num_heads + shape.num_key_value_heads)
    if mode.arithmetic == "float32":
        return (3 if mode.fuses_layers else 4) * FULL * (queries + keys) + scalars
    return (FULL + 3 * HALF) * (queries + keys) + scalars


def _backward(shape: ModelShape, *, num_tokens: int, num_answers: int, mode: TrainingMode) -> int:
    """Bytes beside what is kept of the gradients in the MLP, the widest place, while a layer goes backward.

    Where the last layer's are of answers alone, those of the one before it, when what the last kept is gone.
    """
    whole = num_tokens * _mlp_gradients(shape, mode=mode)
    if not mode.fuses_layers or mode.checkpoints_gradients:
        return whole
    last = _last_layer(shape, num_tokens=num_tokens, num_answers=num_answers, mode=mode)
    return max(num_answers * _mlp_gradients(shape, mode=mode), whole - last)


def _mlp_gradients(shape: ModelShape, *, mode: TrainingMode) -> int:
    """Bytes a token."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    if mode.arithmetic == "bfloat16" and mode.device == "cuda":
        return 3 * HALF * wide + 2 * FULL * hidden
    # On a CPU bfloat16 was seen to need float32 room for what goes in and comes out of a product as well.
    copies = 2 * FULL * wide if mode.arithmetic == "bfloat16" else 0
    return 3 * FULL * wide + 2 * FULL * hidden + copies


def _half_weights(shape: ModelShape, *, mode: TrainingMode) -> tuple[int, int]:
    """Bytes of the bfloat16 copies of what lies in float32: the layers' matrices, and the projection."""
    if mode.arithmetic == "float32":
        return 0, 0
    layers = shape.num_layers * shape.num_layer_values
    if mode.adapter is not None:
        layers += adapter_values(shape, adapter=mode.adapter) - adapted_values(shape, adapter=mode.adapter)
    return HALF * layers, HALF * shape.hidden_size * shape.vocab_size
