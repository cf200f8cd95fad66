"""Planted answers for tests and benchmarks: confidence that is known to be right, or wrong by a factor."""

from __future__ import annotations

import numpy as np

from intelligence.resampling import Floats
from registry.calibrations import ConfidenceSample
from registry.records import TEMPERATURES

NUM_TOKENS = 3
VOCABULARY = 30


def planted_answers(num_rows: int, *, scale: float, seed: int) -> list[ConfidenceSample]:
    """Greedy answers of a calibrated model, told with its logits multiplied by `scale`.

    Each answer is right with the probability that the unscaled logits give it, so that dividing the told
    logits by `scale`, and by nothing else, is right.
    """
    rng = np.random.default_rng(seed)
    sharpness = rng.uniform(0.5, 6.0, size=(num_rows, 1, 1))
    logits = sharpness * rng.gumbel(size=(num_rows, NUM_TOKENS, VOCABULARY))
    is_correct = rng.random(num_rows) < np.exp(_logprobs(logits))
    tempered = np.stack([_logprobs(logits * (scale / one)) for one in TEMPERATURES], axis=1)
    return [
        ConfidenceSample(
            row_id=f"row-{row:06}",
            difficulty=("easy", "medium", "hard")[row % 3],
            is_correct=bool(is_correct[row]),
            is_finished=True,
            confidence=float(np.exp(tempered[row, TEMPERATURES.index(1.0)])),
            tempered_logprobs=tuple(tempered[row].tolist()),
        )
        for row in range(num_rows)
    ]


def _logprobs(logits: Floats) -> Floats:
    """Log-probability of the likeliest sequence, shape (rows,), from logits (rows, tokens, vocabulary)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Floats = -np.log(np.exp(shifted).sum(axis=-1)).sum(axis=-1)
    return result
