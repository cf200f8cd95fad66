"""What a process holds that keeps a part of every weight, gradient and moment (FSDP2), beside that part.

`trainer/core/exchange.py` wraps each decoder layer, and all that no layer owns as one: embedding, projection
and last norm. A layer's weights are fetched when it is computed, forward and backward; the rest is fetched
once a pass and stays until its end. What is fetched lies in one message first, then in a tensor for each
weight; gradients go the same way back. Everything is float32.

On a CPU the C library's heap keeps the room of what was dropped and hardly uses it again, as long as blocks
are small enough to lie there: in two and four processes about as much was held as if every layer's weights
and gradients had stayed. There `fsdp` saves little, with two processes nothing, unless matrices are large.
"""

from __future__ import annotations

from registry.model_shapes import ModelShape
from trainer.allocator_sizes import FULL, HALF, LARGEST_HEAP_BLOCK, Part

# A layer's weights and the message that brought them, or the next layer's that is under way meanwhile. Of
# gradients as many, and the message that they leave in.
LAYERS_AT_ONCE = 2


def sharded(parts: list[Part], *, num_shards: int) -> list[Part]:
    """A process's share of what all keep together."""
    return [(-(-num_bytes // num_shards), -(-block // num_shards)) for num_bytes, block in parts]


def gathered_weights(shape: ModelShape, *, num_shards: int, device: str) -> list[Part]:
    """While a layer is computed."""
    if num_shards == 1:
        return []
    return [(_rest_bytes(shape), _table_bytes(shape)), _whole_layers(shape, device=device)]


def reduced_gradients(shape: ModelShape, *, num_shards: int, device: str) -> list[Part]:
    """Whole ones, while a layer goes backward."""
    return [] if num_shards == 1 else [_whole_layers(shape, device=device)]


def last_gradients(shape: ModelShape) -> list[Part]:
    """At the end of the backward pass: of what no layer owns the weights, the gradient and its message."""
    rest, table = _rest_bytes(shape), _table_bytes(shape)
    return [(3 * rest, table)]


def moments_outside(
    shape: ModelShape, *, num_shards: int, device: str, is_half: bool, states: int
) -> list[list[Part]]:
    """Beside a share of `states` bytes while a model is loaded, and while a checkpoint is written.

    Both happen in main memory; of a card a checkpoint asks for one tensor that is put together, and for the
    message that brings it.
    """
    table = _table_bytes(shape)
    if device == "cuda":
        return [[(2 * table, table)]]
    # Every process loads the model whole, before there are moments.
    whole = FULL * shape.num_parameters + _layer_bytes(shape)
    # The first process alone puts weights and moments together, in the memory of all: a share of it for each.
    values = 4 * FULL + HALF if is_half else 3 * FULL
    return [
        [(max(0, whole - states), table)],
        sharded([(values * shape.num_parameters, num_shards * table)], num_shards=num_shards),
    ]


def _whole_layers(shape: ModelShape, *, device: str) -> Part:
    """Layers that are whole at once, or whose room is held as if they were."""
    matrix = FULL * shape.hidden_size * shape.intermediate_size
    is_held = device == "cpu" and matrix <= LARGEST_HEAP_BLOCK
    count = max(LAYERS_AT_ONCE, shape.num_layers if is_held else 0)
    return count * _layer_bytes(shape), matrix


def _table_bytes(shape: ModelShape) -> int:
    return FULL * shape.hidden_size * shape.vocab_size


def _rest_bytes(shape: ModelShape) -> int:
    """Embedding and projection: one table, or two where there is room for two beside the layers."""
    table, layers = _table_bytes(shape), FULL * shape.num_layers * shape.num_layer_values
    return 2 * table if FULL * shape.num_parameters >= layers + 2 * table else table


def _layer_bytes(shape: ModelShape) -> int:
    return max(0, FULL * shape.num_parameters - _rest_bytes(shape)) // shape.num_layers
