"""The regression monitor: a candidate against the anchored baseline, example by example.

Every limit is held against the whole 95 % interval of a paired bootstrap, not against the estimate alone:
beyond it entirely is `regressed`, beyond it by the estimate only is `watch`. What cannot be compared is
`unknown`, and unknown blocks.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from intelligence.statistics import percentile_estimate, resample
from intelligence.summary import is_known
from registry.messages import Evidence, RegressionLimits, RegressionRequest
from registry.records import Estimate, ExampleResult, Ranking, Verdict
from registry.states import Outcome

Pair = tuple[ExampleResult, ExampleResult]


def judge(request: RegressionRequest, *, now: datetime, rng: np.random.Generator) -> Verdict:
    """The verdict on a candidate; `rng` draws the bootstrap."""
    problem = _why_unknown(request)
    if problem:
        return _verdict(request, outcome=Outcome.UNKNOWN, reasons=(problem,), now=now)
    pairs = _pairs(request)
    measured = _measure(pairs, limits=request.limits, rng=rng)
    outcome, reasons = _decide(measured, limits=request.limits, num_pairs=len(pairs))
    return _verdict(
        request, outcome=outcome, reasons=reasons, now=now, num_pairs=len(pairs), measured=measured
    )


def choose_baseline(
    *, served_checkpoint_id: str | None, ranking: Ranking | None, base_checkpoint_id: str | None
) -> list[str]:
    """Checkpoints that may anchor a comparison, best claim first: served, best ranked, base.

    Never "the last that passed": with it, five steps of +14 % go unseen.
    """
    best = ranking.entries[0].checkpoint_id if ranking is not None and ranking.entries else None
    claims = (served_checkpoint_id, best, base_checkpoint_id)
    return list(dict.fromkeys(name for name in claims if name is not None))


def _why_unknown(request: RegressionRequest) -> str:
    candidate, baseline = request.candidate, request.baseline
    if baseline is None:
        return "There is no anchored baseline to compare with."
    if candidate.suite_id != baseline.suite_id:
        return f"The suites differ: {candidate.suite_id} and {baseline.suite_id}."
    rows, baseline_rows = ({example.row_id for example in side.examples} for side in (candidate, baseline))
    if rows != baseline_rows:
        return (
            f"The rows differ: {len(rows - baseline_rows)} are new, {len(baseline_rows - rows)} are missing."
        )
    if len(rows) != len(candidate.examples) or len(baseline_rows) != len(baseline.examples):
        return "A row was answered twice in one evaluation."
    if len(rows) < request.limits.min_pairs:
        return f"{len(rows)} paired examples are too few; {request.limits.min_pairs} are needed."
    return _unknown_losses(candidate, role="candidate") or _unknown_losses(baseline, role="baseline")


def _unknown_losses(evidence: Evidence, *, role: str) -> str:
    unknown = [example for example in evidence.examples if not is_known(example)]
    if not unknown:
        return ""
    cause = unknown[0].problem or "no finite loss"
    return f"{len(unknown)} of {len(evidence.examples)} examples of the {role} have no finite loss ({cause})."


def _pairs(request: RegressionRequest) -> list[Pair]:
    baseline = request.baseline.examples if request.baseline else ()
    by_row = {example.row_id: example for example in baseline}
    return [
        (example, by_row[example.row_id])
        for example in sorted(request.candidate.examples, key=lambda example: example.row_id)
    ]


def _measure(pairs: list[Pair], *, limits: RegressionLimits, rng: np.random.Generator) -> dict[str, Estimate]:
    """Relative loss increase, change of accuracy, ratio of perplexities, each with its interval."""
    losses = np.array([[one.loss, two.loss] for one, two in pairs], dtype=np.float64)
    correct = np.array([[one.is_correct, two.is_correct] for one, two in pairs], dtype=np.float64)
    draws = resample(len(pairs), num_resamples=limits.num_resamples, rng=rng)

    def measure(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        loss, accuracy = values[..., :2], values[..., 2:]
        # Near zero a relative increase explodes (0.001 to 0.002 is +100 %), so the baseline has a floor.
        floor = np.maximum(loss[..., 1], limits.min_baseline_loss)
        difference = loss[..., 0] - loss[..., 1]
        return {
            "loss_increase": difference / floor,
            "accuracy_change": accuracy[..., 0] - accuracy[..., 1],
            "perplexity_ratio": np.exp(np.minimum(difference, MAX_LOG_RATIO)),
        }

    table = np.concatenate([losses, correct], axis=1)
    point, drawn = measure(table.mean(axis=0)), measure(table[draws].mean(axis=1))
    return {
        name: percentile_estimate(float(point[name]), draws=drawn[name], num_samples=len(pairs))
        for name in point
    }


# exp overflows above 709; a ratio of e^50 is beyond any limit.
MAX_LOG_RATIO = 50.0


def _decide(
    measured: dict[str, Estimate], *, limits: RegressionLimits, num_pairs: int
) -> tuple[Outcome, tuple[str, ...]]:
    loss, accuracy = measured["loss_increase"], measured["accuracy_change"]
    ratio = measured["perplexity_ratio"]
    checks = [
        (
            loss.low > limits.max_loss_increase,
            loss.value > limits.max_loss_increase,
            _loss_reason(loss, limits),
        ),
        (
            accuracy.high < -limits.max_accuracy_drop,
            accuracy.value < -limits.max_accuracy_drop,
            _accuracy_reason(accuracy, limits),
        ),
        (
            ratio.low > limits.max_perplexity_ratio,
            ratio.value > limits.max_perplexity_ratio,
            _ratio_reason(ratio, limits),
        ),
    ]
    broken = tuple(reason for whole, _, reason in checks if whole)
    if broken:
        return Outcome.REGRESSED, broken
    doubtful = tuple(reason for _, point, reason in checks if point)
    if doubtful:
        return Outcome.WATCH, doubtful
    return Outcome.PASS, (f"No limit is broken (n = {num_pairs}). " + checks[0][2],)


def _loss_reason(estimate: Estimate, limits: RegressionLimits) -> str:
    return (
        f"Loss {estimate.value:+.1%} [{estimate.low:+.1%}, {estimate.high:+.1%}] against the baseline, "
        f"limit {limits.max_loss_increase:+.0%}, n = {estimate.num_samples}."
    )


def _accuracy_reason(estimate: Estimate, limits: RegressionLimits) -> str:
    points = [100 * bound for bound in (estimate.value, estimate.low, estimate.high)]
    return (
        f"Accuracy {points[0]:+.1f} points [{points[1]:+.1f}, {points[2]:+.1f}], "
        f"limit {-100 * limits.max_accuracy_drop:+.0f}, n = {estimate.num_samples}."
    )


def _ratio_reason(estimate: Estimate, limits: RegressionLimits) -> str:
    return (
        f"Perplexity x{estimate.value:.2f} [x{estimate.low:.2f}, x{estimate.high:.2f}], "
        f"limit x{limits.max_perplexity_ratio:g}, n = {estimate.num_samples}."
    )


def _verdict(
    request: RegressionRequest,
    *,
    outcome: Outcome,
    reasons: tuple[str, ...],
    now: datetime,
    num_pairs: int = 0,
    measured: dict[str, Estimate] | None = None,
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
        num_pairs=num_pairs,
        decided_at=now,
        **(measured or {}),
    )
