"""Which way the loss of a part of a batch is computed: a function of setting, answers and vocabulary alone.

`plain` makes the logits of all answers at once. `chunked` makes those of a few answers at a time, and their
gradients with them. `auto` is chunked where there is more than one chunk: small vocabularies stay as fast as
they were, and a run that goes on after a break decides as it did before.
"""

from __future__ import annotations

from typing import Literal

CrossEntropy = Literal["auto", "plain", "chunked", "liger"]

# 64 MiB in float32, 110 answers at a vocabulary of 151 936. Half and twice as many were about as fast on a
# CPU; far fewer leave the products short of work: each chunk reads and writes the projection's gradient.
CHUNK_LOGITS = 1 << 24


def is_chunked(kind: CrossEntropy, *, num_answers: int, vocab_size: int) -> bool:
    """True where the logits of so many answers are made a chunk at a time."""
    return kind == "chunked" or (kind == "auto" and num_answers * vocab_size > CHUNK_LOGITS)


def answers_per_chunk(num_answers: int, *, vocab_size: int) -> int:
    """As even as can be, so that no chunk is a small rest; at least one."""
    most = max(1, CHUNK_LOGITS // vocab_size)
    num_chunks = max(1, -(-num_answers // most))
    return max(1, -(-num_answers // num_chunks))
