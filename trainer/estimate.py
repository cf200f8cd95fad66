"""How much memory a training job needs, before anything is loaded. On the safe side, not exact.

Weights, gradients and AdamW's two moments are kept in float32: 16 bytes a parameter. Activations of a
decoder layer are about 34 values of 2 bytes a token and hidden unit (Korthikanti et al. 2022, "Reducing
Activation Recomputation in Large Transformer Models", eq. 2, without the attention matrix, which fused
attention never writes); half of them are float32 here, so 3 bytes are counted. Logits, their gradient and
the softmax take 3 float32 values a token and vocabulary entry.
"""

from __future__ import annotations

from registry.model_shapes import ModelShape

STATE_BYTES = 16
ACTIVATION_VALUES, ACTIVATION_BYTES = 34, 3
LOGIT_BYTES = 12
RUNTIME_BYTES = 700_000_000  # PyTorch, CUDA's context and its libraries


def training_bytes(shape: ModelShape, *, tokens_per_batch: int) -> int:
    """Of a full fine-tuning step with so many tokens, padding included."""
    states = STATE_BYTES * shape.num_parameters
    activations = ACTIVATION_VALUES * ACTIVATION_BYTES * shape.hidden_size * shape.num_layers
    logits = LOGIT_BYTES * shape.vocab_size
    return RUNTIME_BYTES + states + tokens_per_batch * (activations + logits)


def smallest_training_bytes(shape: ModelShape) -> int:
    """Of the same with the smallest parts that a step can be split into: below this nothing trains."""
    return RUNTIME_BYTES + STATE_BYTES * shape.num_parameters
