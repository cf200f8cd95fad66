"""The regression monitor: a candidate against the anchored baseline, example by example.

Every limit is held against the whole 95 % interval of a paired bootstrap, not against the estimate alone:
beyond it entirely is `regressed`, beyond it by the estimate only is `watch`. So is the drift against the
first anchor, since many small steps, each within its limit, lead far. A difficulty or tag that is surely
worse is `regressed` too. What cannot be compared is `unknown`, and unknown blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from intelligence.pairs import Pairs, measure, pair, why_incomparable
from intelligence.slices import judge_slices
from intelligence.statistics import standard_error
from registry.messages import Evidence, RegressionLimits, RegressionRequest
from registry.records import Estimate, Ranking, Verdict
from registry.states import Outcome
from registry.verdicts import Drift, Power, SliceVerdict

# Standard errors between no effect and one found with 80 % power at the two-sided 5 % level: 1.96 + 0.84.
DETECTABLE_ERRORS = 2.8016
# A tail this thin says more than any table of it is right to.
SMALLEST_P = 1e-15


@dataclass(frozen=True)
class Check:
    """One limit held against one estimate. `reason` is the sentence that tells both."""

    is_beyond: bool
    is_wholly_beyond: bool
    reason: str


def judge(request: RegressionRequest, *, now: datetime, rng: np.random.Generator) -> Verdict:
    """The verdict on a candidate: as a whole, by slices, and against the first anchor.

    `rng` draws the bootstraps; `now` is when it was decided.
    """
    baseline = request.baseline
    if baseline is None:
        return _unknown(request, reason="There is no anchored baseline to compare with.", now=now)
    for against, role in ((baseline, ""), (request.first_anchor, "Against the first anchor: ")):
        problem = _problem(request, against=against)
        if problem:
            return _unknown(request, reason=role + problem, now=now)
    pairs = pair(request.candidate, baseline)
    measured = measure(pairs, limits=request.limits, rng=rng)
    slices, num_small = judge_slices(pairs, limits=request.limits, rng=rng)
    drift = _drift(request, rng=rng)
    checks = [
        *_checks(measured, limits=request.limits),
        *_drift_checks(drift, limits=request.limits),
        *_slice_checks(slices, limits=request.limits),
    ]
    outcome, reasons = _decide(checks)
    return _verdict(request, outcome=outcome, reasons=reasons, now=now).changed(
        num_pairs=len(pairs.table),
        slices=slices,
        num_small_slices=num_small,
        drift=drift,
        power=_power(pairs, limits=request.limits),
        **measured,
    )


def choose_baseline(
    *, served_checkpoint_id: str | None, ranking: Ranking | None, base_checkpoint_id: str | None
) -> list[str]:
    """Checkpoints that may anchor a comparison, best claim first: served, best ranked, base.

    The anchor is the first of them that has an answered evaluation on the suite. Never "the last that
    passed": with it, five steps of +14 % go unseen.
    """
    best = ranking.entries[0].checkpoint_id if ranking is not None and ranking.entries else None
    claims = (served_checkpoint_id, best, base_checkpoint_id)
    return list(dict.fromkeys(name for name in claims if name is not None))


def _problem(request: RegressionRequest, *, against: Evidence | None) -> str:
    if against is None:
        return ""
    return why_incomparable(request.candidate, against, min_pairs=request.limits.min_pairs)


def _drift(request: RegressionRequest, *, rng: np.random.Generator) -> Drift | None:
    anchor = request.first_anchor
    if anchor is None:
        return None
    pairs = pair(request.candidate, anchor)
    measured = measure(pairs, limits=request.limits, rng=rng)
    return Drift(
        checkpoint_id=anchor.checkpoint_id,
        evaluation_id=anchor.evaluation_id,
        outcome=_decide(_checks(measured, limits=request.limits))[0],
        num_pairs=len(pairs.table),
        loss_increase=measured["loss_increase"],
        accuracy_change=measured["accuracy_change"],
        perplexity_ratio=measured["perplexity_ratio"],
    )


def _power(pairs: Pairs, *, limits: RegressionLimits) -> Power:
    """From the spread of the paired differences (Miller 2024, section 5)."""
    error = standard_error(pairs.loss_change, clusters=pairs.clusters)
    detectable = DETECTABLE_ERRORS * error / pairs.baseline_loss(floor=limits.min_baseline_loss)
    needed = math.ceil(len(pairs.table) * (detectable / limits.max_loss_increase) ** 2)
    return Power(
        detectable_increase=detectable,
        num_pairs_needed=max(needed, limits.min_pairs),
        num_clusters=pairs.num_clusters,
        suffices=detectable <= limits.max_loss_increase,
    )


def _checks(
    measured: Mapping[str, Estimate], *, limits: RegressionLimits, prefix: str = "The "
) -> list[Check]:
    loss, accuracy = measured["loss_increase"], measured["accuracy_change"]
    ratio, lowest = measured["perplexity_ratio"], -limits.max_accuracy_drop
    return [
        Check(
            is_beyond=loss.value > limits.max_loss_increase,
            is_wholly_beyond=loss.low > limits.max_loss_increase,
            reason=f"{prefix}loss changed by {_told(loss, how='+.1%')}; "
            f"the limit is {limits.max_loss_increase:+.1%}.",
        ),
        Check(
            is_beyond=accuracy.value < lowest,
            is_wholly_beyond=accuracy.high < lowest,
            reason=f"{prefix}accuracy changed by {_told(accuracy, how='+.1f', scale=100, unit=' points')}; "
            f"the limit is {100 * lowest:+.1f} points.",
        ),
        Check(
            is_beyond=ratio.value > limits.max_perplexity_ratio,
            is_wholly_beyond=ratio.low > limits.max_perplexity_ratio,
            reason=f"{prefix}perplexity is {_told(ratio, how='.3g')} times the baseline's; "
            f"the limit is {limits.max_perplexity_ratio:g}.",
        ),
    ]


def _drift_checks(drift: Drift | None, *, limits: RegressionLimits) -> list[Check]:
    if drift is None:
        return []
    estimates = (drift.loss_increase, drift.accuracy_change, drift.perplexity_ratio)
    names = ("loss_increase", "accuracy_change", "perplexity_ratio")
    measured = {name: value for name, value in zip(names, estimates, strict=True) if value is not None}
    return _checks(measured, limits=limits, prefix=f"Since the first anchor {drift.checkpoint_id} the ")


def _slice_checks(slices: Sequence[SliceVerdict], *, limits: RegressionLimits) -> list[Check]:
    """A slice that is beyond its limit by the estimate alone is told in its line; it decides nothing."""
    return [
        Check(
            is_beyond=True,
            is_wholly_beyond=True,
            reason=f"The {one.kind} {one.name} regressed: loss {_told(one.loss_increase, how='+.1%')} (limit "
            f"{limits.max_slice_loss_increase:+.1%}, {_told_p(one.p_loss)}), accuracy "
            f"{_told(one.accuracy_change, how='+.1f', scale=100, unit=' points')} (limit "
            f"{-100 * limits.max_slice_accuracy_drop:+.1f}, {_told_p(one.p_accuracy)}); p is adjusted by "
            f"Holm over {len(slices)} slices and both measures.",
        )
        for one in slices
        if one.outcome is Outcome.REGRESSED
    ]


def _told(estimate: Estimate, *, how: str, scale: float = 1, unit: str = "") -> str:
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (format(scale * number, how) for number in numbers)
    return f"{value}{unit} (95 % interval {low} to {high}, n = {estimate.num_samples})"


def _told_p(p_value: float) -> str:
    return "p < 1e-15" if p_value < SMALLEST_P else f"p = {p_value:.2g}"


def _decide(checks: list[Check]) -> tuple[Outcome, tuple[str, ...]]:
    broken = tuple(check.reason for check in checks if check.is_wholly_beyond)
    if broken:
        return Outcome.REGRESSED, broken
    doubtful = tuple(check.reason for check in checks if check.is_beyond)
    if doubtful:
        return Outcome.WATCH, doubtful
    return Outcome.PASS, tuple(check.reason for check in checks)


def _unknown(request: RegressionRequest, *, reason: str, now: datetime) -> Verdict:
    return _verdict(request, outcome=Outcome.UNKNOWN, reasons=(reason,), now=now)


def _verdict(
    request: RegressionRequest, *, outcome: Outcome, reasons: tuple[str, ...], now: datetime
) -> Verdict:
    baseline = request.baseline
    return Verdict(
        id=request.verdict_id,
        checkpoint_id=request.candidate.checkpoint_id,
        suite_id=request.candidate.suite_id,
        evaluation_id=request.candidate.evaluation_id,
        baseline_checkpoint_id=baseline.checkpoint_id if baseline else None,
        baseline_evaluation_id=baseline.evaluation_id if baseline else None,
        outcome=outcome,
        reasons=reasons,
        num_pairs=0,
        decided_at=now,
    )
