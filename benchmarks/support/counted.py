"""What the benchmark of verdicts counts, and its tables: each share with n and its Wilson interval."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intelligence.statistics import wilson_interval
from registry.messages import RegressionLimits
from registry.states import Outcome

TWIN, SLICE, NOT_A_NUMBER = "harmless twin", "one tag", "not a number"
HARMLESS, HARMFUL = 0.05, 0.20
FORGOTTEN = 1.00  # a tag is forgotten whose loss is twice what it was
SIZES = (0.05, 0.15, 0.20, 0.30, 0.50, np.inf)
SLICE_SIZES = (0.50, 0.75, 1.00, np.inf)


@dataclass(frozen=True)
class Result:
    """What is true of a model, and what was said of it. `truth` is NaN where the model answers nothing.

    `tag_truth` is that of the tag which alone was to be forgotten; NaN for every other kind.
    """

    kind: str
    target: float
    truth: float
    truth_error: float
    slice_truths: dict[str, float]
    tag_truth: float
    outcome: Outcome
    is_naive_alarm: bool
    spread: float
    cpu_seconds: float

    @property
    def is_accepted(self) -> bool:
        """Only what passes may be ranked and served."""
        return self.outcome is Outcome.PASS

    def is_calm(self, limits: RegressionLimits) -> bool:
        """True where no slice truly lost more than its limit."""
        return max(self.slice_truths.values()) <= limits.max_slice_loss_increase


@dataclass(frozen=True)
class Goal:
    """A share of models that are not accepted, and what it is to be."""

    name: str
    found: Sequence[Result]
    at_least: float = 0.0
    at_most: float = 1.0

    @property
    def is_reached(self) -> bool:
        """Never of nothing."""
        num_blocked = sum(not one.is_accepted for one in self.found)
        return bool(self.found) and self.at_least <= num_blocked / len(self.found) <= self.at_most


def report(
    results: Sequence[Result], *, kinds: Sequence[str], limits: RegressionLimits, num_suite_rows: int
) -> bool:
    """Print every table; True where all goals are reached."""
    groups, goals = _groups(results, kinds=kinds, limits=limits), _goals(results, kinds=kinds, limits=limits)
    print(f"\n{'':<52} {'n':>4}  {'not accepted':>22} {'regressed':>22} {'naive rule':>22}")
    for name, found in [*groups, *((goal.name, goal.found) for goal in goals)]:
        print(_line(name, found))
    _print_power(_known(results), limits=limits, num_suite_rows=num_suite_rows)
    cpu_seconds = sum(one.cpu_seconds for one in results)
    print(f"Sizing, evaluating and judging took {cpu_seconds / len(results):.1f} s of a core a model.")
    return all(goal.is_reached for goal in goals)


def _known(results: Sequence[Result]) -> list[Result]:
    return [one for one in results if np.isfinite(one.truth)]


def _groups(
    results: Sequence[Result], *, kinds: Sequence[str], limits: RegressionLimits
) -> list[tuple[str, list[Result]]]:
    known = _known(results)
    planted = [one for one in known if one.kind in kinds]
    slices = [one for one in known if one.kind == SLICE]
    harmless = [one for one in known if one.truth <= HARMLESS]
    return [
        *(
            (f"planted, truth {_between(low, high)}", [one for one in planted if low < one.truth <= high])
            for low, high in itertools.pairwise(SIZES)
        ),
        *(
            (
                f"{kind}, truth +20 % or more",
                [one for one in planted if one.kind == kind and one.truth >= HARMFUL],
            )
            for kind in kinds
        ),
        *(
            (
                f"one tag, its truth {_between(low, high)}",
                [one for one in slices if low < one.tag_truth <= high],
            )
            for low, high in itertools.pairwise(SLICE_SIZES)
        ),
        ("twins, whatever their truth", [one for one in known if one.kind == TWIN]),
        (
            "truth at most +5 %, a slice truly beyond its limit",
            [one for one in harmless if not one.is_calm(limits)],
        ),
        ("not a number", [one for one in results if one.kind == NOT_A_NUMBER]),
    ]


def _goals(results: Sequence[Result], *, kinds: Sequence[str], limits: RegressionLimits) -> list[Goal]:
    known = _known(results)
    caught = [one for one in known if one.kind in kinds and one.truth >= HARMFUL]
    forgotten = [one for one in known if one.truth <= limits.max_loss_increase and one.tag_truth >= FORGOTTEN]
    calm = [one for one in known if one.truth <= HARMLESS and one.is_calm(limits)]
    return [
        Goal("GOAL >= 99 %: truth +20 % or more", caught, at_least=0.99),
        Goal("GOAL >= 95 %: a tag +100 % or more, the whole <= +15 %", forgotten, at_least=0.95),
        Goal("GOAL <= 1 %: truth at most +5 %, no slice beyond", calm, at_most=0.01),
    ]


def _between(low: float, high: float) -> str:
    return f"over {low:+.0%}" if np.isinf(high) else f"{low:+.0%} to {high:+.0%}"


def _line(name: str, found: Sequence[Result]) -> str:
    if not found:
        return f"{name:<52} {0:4d}"
    counts = (
        sum(not one.is_accepted for one in found),
        sum(one.outcome is Outcome.REGRESSED for one in found),
        sum(one.is_naive_alarm for one in found),
    )
    return f"{name:<52} {len(found):4d}  " + " ".join(_told(count, num=len(found)) for count in counts)


def _told(count: int, *, num: int) -> str:
    share = wilson_interval(count, num_trials=num)
    return f"{share.value:7.1%} [{share.low:6.1%},{share.high:6.1%}]"


def _print_power(known: Sequence[Result], *, limits: RegressionLimits, num_suite_rows: int) -> None:
    near = sorted(one.spread for one in known if 0.10 <= one.truth <= 0.40)
    errors = [one.truth_error for one in known if 0.10 <= one.truth <= 0.40]
    if not near:
        return
    spread = float(np.quantile(near, 0.9))
    error = (0.20 - limits.max_loss_increase) / 2.326
    print(
        f"\nPaired differences spread by {np.median(near):.2f} baseline losses (median of {len(near)} models "
        f"with a truth of +10 % to +40 %; 90 % below {spread:.2f}). A standard error of {error:.1%} needs "
        f"{(spread / error) ** 2:.0f} rows; the suite has {num_suite_rows}. The truth itself is known to "
        f"+-{1.96 * max(errors):.1%} at worst."
    )
