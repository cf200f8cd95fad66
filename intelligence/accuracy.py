"""Automated testing: a checkpoint's accuracy by difficulty, and what it lost against the anchored baseline.

A drop is alarming where it is large (5 points a warning, 15 critical) and told from chance by McNemar's exact
test on the same rows; of difficulties the p is adjusted by Holm. It judges the record of an evaluation and
loads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from intelligence.pairs import why_unmatched
from intelligence.statistics import holm, mcnemar_p, paired_share_change, wilson_interval
from intelligence.summary import is_known
from registry.messages import AccuracyLimits, AccuracyRequest, Evidence
from registry.records import ExampleResult
from registry.reports import AccuracyChange, AccuracyReport
from registry.states import AlertLevel

WHOLE = "all rows"
ORDER = (AlertLevel.CRITICAL, AlertLevel.WARNING)

Matched = list[tuple[ExampleResult, ExampleResult]]


@dataclass(frozen=True)
class Counts:
    """Rows of a slice by what both sides made of them."""

    both: int
    gained: int
    lost: int
    neither: int

    @property
    def num_pairs(self) -> int:
        """All of them."""
        return self.both + self.gained + self.lost + self.neither


def report(request: AccuracyRequest, *, now: datetime) -> AccuracyReport:
    """Accuracy of the candidate, paired with the baseline's where there is one.

    A row without a known answer counts as wrong on either side, and is told of. Where every row is one, as
    with weights that are not finite, nothing is known, and what cannot be paired has no total either.
    """
    baseline = request.baseline
    if not request.candidate.examples:
        return _report(request, now=now, reasons=("The evaluation has no examples.",))
    problem = _why_nothing_is_known(request)
    if problem:
        return _report(request, now=now, reasons=(problem,))
    if baseline is None:
        return _alone(request, now=now)
    problem = why_unmatched(request.candidate, baseline)
    if problem:
        return _report(request, now=now, reasons=(problem,))
    matched = _matched(request.candidate, baseline)
    total = _change(WHOLE, _counts(matched), limits=request.limits)
    levels = _levels(matched, limits=request.limits)
    if not request.may_alarm:
        total, levels = total.changed(level=None), tuple(one.changed(level=None) for one in levels)
    flips = [(mine.row_id, _is_right(mine), _is_right(other)) for mine, other in matched]
    reasons = (*_reasons([total, *levels], limits=request.limits), *_unknown_counted(request))
    return _report(request, now=now, reasons=reasons).changed(
        total=total,
        levels=levels,
        gained_row_ids=tuple(row_id for row_id, mine, other in flips if mine and not other),
        lost_row_ids=tuple(row_id for row_id, mine, other in flips if other and not mine),
        level=_worst([total, *levels]),
    )


def _why_nothing_is_known(request: AccuracyRequest) -> str:
    for evidence, role in _sides(request):
        unknown = [example for example in evidence.examples if not is_known(example)]
        if unknown and len(unknown) == len(evidence.examples):
            cause = f" ({unknown[0].problem})" if unknown[0].problem else ""
            return f"The answers to all {len(unknown)} rows of the {role} are unknown{cause}."
    return ""


def _unknown_counted(request: AccuracyRequest) -> tuple[str, ...]:
    counts = (
        (sum(not is_known(example) for example in evidence.examples), len(evidence.examples), role)
        for evidence, role in _sides(request)
    )
    return tuple(
        f"{num_unknown} of {num_rows} answers of the {role} are unknown and count as wrong."
        for num_unknown, num_rows, role in counts
        if num_unknown
    )


def _sides(request: AccuracyRequest) -> list[tuple[Evidence, str]]:
    sides = [(request.candidate, "checkpoint")]
    return sides if request.baseline is None else [*sides, (request.baseline, "baseline")]


def _alone(request: AccuracyRequest, *, now: datetime) -> AccuracyReport:
    examples = request.candidate.examples
    levels = sorted({example.difficulty for example in examples})
    reasons = ("There is no baseline before it.", *_unknown_counted(request))
    return _report(request, now=now, reasons=reasons).changed(
        total=_accuracy(WHOLE, examples),
        levels=tuple(_accuracy(name, [one for one in examples if one.difficulty == name]) for name in levels),
    )


def _accuracy(name: str, examples: Sequence[ExampleResult]) -> AccuracyChange:
    num_right = sum(_is_right(example) for example in examples)
    return AccuracyChange(name=name, accuracy=wilson_interval(num_right, num_trials=len(examples)))


def _matched(candidate: Evidence, baseline: Evidence) -> Matched:
    by_row = {example.row_id: example for example in baseline.examples}
    ordered = sorted(candidate.examples, key=lambda example: example.row_id)
    return [(example, by_row[example.row_id]) for example in ordered]


def _is_right(example: ExampleResult) -> bool:
    return example.is_correct and is_known(example)


def _counts(matched: Matched) -> Counts:
    outcomes = [(_is_right(mine), _is_right(other)) for mine, other in matched]
    return Counts(
        both=outcomes.count((True, True)),
        gained=outcomes.count((True, False)),
        lost=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )


def _levels(matched: Matched, *, limits: AccuracyLimits) -> tuple[AccuracyChange, ...]:
    names = sorted({mine.difficulty for mine, _ in matched})
    if len(names) < 2:
        return ()  # the suite is its only difficulty
    counts = [_counts([pair for pair in matched if pair[0].difficulty == name]) for name in names]
    p_values = holm([mcnemar_p(one.gained, one.lost) for one in counts])
    return tuple(
        _change(name, one, limits=limits, p_value=p)
        for name, one, p in zip(names, counts, p_values, strict=True)
    )


def _change(
    name: str, counts: Counts, *, limits: AccuracyLimits, p_value: float | None = None
) -> AccuracyChange:
    p_value = mcnemar_p(counts.gained, counts.lost) if p_value is None else p_value
    change = paired_share_change(
        counts.both, num_gained=counts.gained, num_lost=counts.lost, num_neither=counts.neither
    )
    return AccuracyChange(
        name=name,
        accuracy=wilson_interval(counts.both + counts.gained, num_trials=counts.num_pairs),
        baseline=wilson_interval(counts.both + counts.lost, num_trials=counts.num_pairs),
        change=change,
        p_value=p_value,
        num_gained=counts.gained,
        num_lost=counts.lost,
        level=_level(change.value, p_value=p_value, limits=limits),
    )


def _level(change: float, *, p_value: float, limits: AccuracyLimits) -> AlertLevel | None:
    if p_value >= limits.max_p_value or change > -limits.warning_drop:
        return None
    return AlertLevel.CRITICAL if change <= -limits.critical_drop else AlertLevel.WARNING


def _worst(changes: Sequence[AccuracyChange]) -> AlertLevel | None:
    found = {change.level for change in changes}
    return next((level for level in ORDER if level in found), None)


def _reasons(changes: Sequence[AccuracyChange], *, limits: AccuracyLimits) -> tuple[str, ...]:
    alarming = [change for change in changes if change.level is not None]
    return tuple(_sentence(change, limits=limits) for change in alarming or changes[:1])


def _sentence(one: AccuracyChange, *, limits: AccuracyLimits) -> str:
    if one.change is None or one.p_value is None:
        return f"The accuracy of {one.name} is {one.accuracy.value:.1%} (n = {one.accuracy.num_samples})."
    value, low, high = (100 * number for number in (one.change.value, one.change.low, one.change.high))
    is_large_by_chance = one.p_value >= limits.max_p_value and one.change.value <= -limits.warning_drop
    doubt = " It may be chance." if is_large_by_chance else ""
    return (
        f"The accuracy of {one.name} changed by {value:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}, n = {one.change.num_samples}, "
        f"{one.num_lost} lost, {one.num_gained} gained, McNemar p = {one.p_value:.2g}).{doubt}"
    )


def _report(request: AccuracyRequest, *, now: datetime, reasons: tuple[str, ...]) -> AccuracyReport:
    baseline = request.baseline
    return AccuracyReport(
        id=request.report_id,
        checkpoint_id=request.candidate.checkpoint_id,
        suite_id=request.candidate.suite_id,
        evaluation_id=request.candidate.evaluation_id,
        baseline_checkpoint_id=baseline.checkpoint_id if baseline else None,
        baseline_evaluation_id=baseline.evaluation_id if baseline else None,
        total=None,
        reasons=reasons,
        made_at=now,
    )
