"""What can go wrong in judging.

TandemError
└── IntelligenceError
    ├── InvalidSample      a statistic was asked of values that have none
    ├── UnreadableAnswer   the expected answer is not what its scorer reads
    └── UnknownScorer      nobody has a scorer of that name

What cannot be judged is no error: it is a verdict of `unknown` with its reason.
"""

from registry.errors import TandemError


class IntelligenceError(TandemError):
    """Root of this room."""


class InvalidSample(IntelligenceError):
    """A statistic was asked of values that have none."""


class UnreadableAnswer(IntelligenceError):
    """The expected answer is not what its scorer reads."""


class UnknownScorer(IntelligenceError):
    """Nobody has a scorer of that name."""
