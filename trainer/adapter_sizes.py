"""How many numbers adapters add to a model and keep of each token, and the memory that merging them takes."""

from __future__ import annotations

from collections.abc import Mapping

from registry.model_shapes import ModelShape
from trainer.allocator_sizes import FULL, HALF, Part
from trainer.config.adapter import AdapterConfig

# B A and that times alpha / rank, to which a weight is added where it lies.
MERGED_MATRICES = 2


def adapter_values(shape: ModelShape, *, adapter: AdapterConfig) -> int:
    """Parameters of all adapters: rank times what goes in and what comes out of each layer."""
    sizes = _adapted(shape, adapter=adapter)
    return shape.num_layers * adapter.rank * sum(wide + narrow for wide, narrow in sizes)


def adapted_values(shape: ModelShape, *, adapter: AdapterConfig) -> int:
    """Parameters of the layers that they stand beside."""
    return shape.num_layers * sum(wide * narrow for wide, narrow in _adapted(shape, adapter=adapter))


def kept_by_adapters(shape: ModelShape, *, adapter: AdapterConfig) -> int:
    """Numbers a token and decoder layer beyond full fine-tuning: what A gives, and what dropout left."""
    sizes = _adapted(shape, adapter=adapter)
    # What was dropped out is a tensor of its own, and so is the mask.
    dropped = 2 * sum(wide for wide, _ in sizes) if adapter.dropout else 0
    return adapter.rank * len(sizes) + dropped


def while_merging(
    shape: ModelShape, *, adapter: AdapterConfig, device: str, is_half: bool, is_copied: bool
) -> list[Part]:
    """What a checkpoint needs: a matrix on its way, and on a CPU the merged ones, unless `is_copied`."""
    largest = FULL * max(wide * narrow for wide, narrow in _adapted(shape, adapter=adapter))
    on_its_way = (MERGED_MATRICES * largest, largest)
    if is_copied:  # a snapshot, which is counted by itself
        return [on_its_way]
    adapted, table = adapted_values(shape, adapter=adapter), FULL * shape.hidden_size * shape.vocab_size
    merged = (HALF if is_half else FULL) * adapted if device == "cpu" else 0
    # In bfloat16 the others are rounded where they lie.
    rounded = HALF * max(0, shape.num_parameters - adapted) if is_half else 0
    return [on_its_way, (merged, largest), (rounded, table // 2)]


def _adapted(shape: ModelShape, *, adapter: AdapterConfig) -> list[tuple[int, int]]:
    """What goes in and comes out of each adapted layer. A name that is not Qwen's counts as all of them."""
    layers = _projections(shape)
    wanted = adapter.target_modules
    if wanted is None or not set(wanted) <= set(layers):
        return list(layers.values())
    return [layers[name] for name in sorted(set(wanted))]


def _projections(shape: ModelShape) -> Mapping[str, tuple[int, int]]:
    hidden, wide = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_queries, shape.num_key_values // 2
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }
