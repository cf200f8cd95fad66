"""From an evaluation's examples to its means. One unknown example makes the mean loss unknown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from intelligence.errors import InvalidSample
from intelligence.statistics import mean_estimate, wilson_interval
from registry.records import Estimate, EvaluationSummary, ExampleResult


def summarise(examples: Sequence[ExampleResult]) -> EvaluationSummary:
    """Mean loss, accuracy by difficulty, mean confidence; `InvalidSample` for no examples.

    An unknown example counts as wrong, and the mean loss is then None: a mean over the rest would look
    better the more examples broke. It is None for a single example too, which has no interval. The mean
    confidence is None unless every example has one.
    """
    if not examples:
        raise InvalidSample("An evaluation without examples has no summary.")
    losses = [example.loss for example in examples if is_known(example) and example.loss is not None]
    is_whole = len(losses) == len(examples) > 1
    return EvaluationSummary(
        num_examples=len(examples),
        num_unknown=len(examples) - len(losses),
        loss=mean_estimate(losses) if is_whole else None,
        accuracy=_accuracy(examples),
        accuracy_by_difficulty=_by_difficulty(examples),
        mean_confidence=_mean_confidence(examples),
    )


def is_known(example: ExampleResult) -> bool:
    """True where the example has a loss and no problem. A log-likelihood's negative is never below zero."""
    return example.loss is not None and example.loss >= 0 and not example.problem


def _accuracy(examples: Sequence[ExampleResult]) -> Estimate:
    num_correct = sum(example.is_correct and is_known(example) for example in examples)
    return wilson_interval(num_correct, num_trials=len(examples))


def _by_difficulty(examples: Sequence[ExampleResult]) -> dict[str, Estimate]:
    groups: dict[str, list[ExampleResult]] = defaultdict(list)
    for example in examples:
        groups[example.difficulty].append(example)
    return {difficulty: _accuracy(group) for difficulty, group in sorted(groups.items())}


def _mean_confidence(examples: Sequence[ExampleResult]) -> float | None:
    confidences = [example.confidence for example in examples if example.confidence is not None]
    return sum(confidences) / len(confidences) if len(confidences) == len(examples) else None
