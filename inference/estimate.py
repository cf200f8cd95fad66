"""How much memory it takes to run a model, before anything is loaded. On the safe side, not exact."""

from __future__ import annotations

from registry.model_shapes import ModelShape

WEIGHT_BYTES = 4  # float32, which is what a CPU uses; CUDA takes half
CACHE_BYTES = 4
BATCH_TOKENS = 8192  # prompts and answers that are worked on at the same time
RUNTIME_BYTES = 700_000_000


def running_bytes(shape: ModelShape) -> int:
    """Weights, the cache of keys and values, and the logits of one batch's last positions."""
    cache = CACHE_BYTES * shape.num_key_values * shape.num_layers * BATCH_TOKENS
    logits = 4 * shape.vocab_size * 256
    return RUNTIME_BYTES + WEIGHT_BYTES * shape.num_parameters + cache + logits
