"""The regression monitor: a candidate against the anchored baseline, example by example.

Every limit is held against the whole 95 % interval of a paired bootstrap, not against the estimate alone:
beyond it entirely is `regressed`, beyond it by the estimate only is `watch`. What cannot be compared is
`unknown`, and unknown blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from intelligence.statistics import Floats, Statistic, paired_bootstrap
from intelligence.summary import is_known
from registry.messages import Evidence, RegressionLimits, RegressionRequest
from registry.records import Estimate, ExampleResult, Ranking, Verdict
from registry.states import Outcome

# exp overflows above 709; a ratio of e^50 is beyond any limit.
MAX_LOG_RATIO = 50.0

# Columns of the table of pairs.
CANDIDATE_LOSS, BASELINE_LOSS, CANDIDATE_CORRECT, BASELINE_CORRECT = range(4)


@dataclass(frozen=True)
class Check:
    """One limit held against one estimate. `reason` is the sentence that tells both."""

    is_beyond: bool
    is_wholly_beyond: bool
    reason: str


def judge(request: RegressionRequest, *, now: datetime, rng: np.random.Generator) -> Verdict:
    """The verdict on a candidate; `rng` draws the bootstrap.

    Loss: mean(candidate) / mean(baseline) - 1, where a baseline below `min_baseline_loss` nats counts as
    that, for near zero a relative increase explodes (0.001 to 0.002 is +100 %). Accuracy: difference of
    shares. Perplexity: exp of the mean difference of losses.
    """
    problem = _why_unknown(request)
    if problem:
        return _verdict(request, outcome=Outcome.UNKNOWN, reasons=(problem,), now=now)
    measured = paired_bootstrap(
        _table(request),
        statistics=_statistics(request.limits),
        num_resamples=request.limits.num_resamples,
        rng=rng,
    )
    outcome, reasons = _decide(_checks(measured, limits=request.limits))
    return _verdict(request, outcome=outcome, reasons=reasons, now=now, measured=measured)


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


def _why_unknown(request: RegressionRequest) -> str:
    candidate, baseline = request.candidate, request.baseline
    if baseline is None:
        return "There is no anchored baseline to compare with."
    if candidate.suite_id != baseline.suite_id:
        return f"The suites differ: {candidate.suite_id} and {baseline.suite_id}."
    rows, baseline_rows = ({example.row_id for example in side.examples} for side in (candidate, baseline))
    if rows != baseline_rows:
        return (
            f"The rows differ: {len(rows - baseline_rows)} are only the candidate's, "
            f"{len(baseline_rows - rows)} only the baseline's."
        )
    if len(rows) != len(candidate.examples) or len(baseline_rows) != len(baseline.examples):
        return "A row was answered twice in one evaluation."
    if len(rows) < request.limits.min_pairs:
        return f"{len(rows)} paired examples are too few; {request.limits.min_pairs} are needed."
    return (
        _unknown_losses(candidate, role="candidate")
        or _unknown_losses(baseline, role="baseline")
        or _other_tokens(request)
    )


def _unknown_losses(evidence: Evidence, *, role: str) -> str:
    unknown = [example for example in evidence.examples if not is_known(example)]
    if not unknown:
        return ""
    first = min(unknown, key=lambda example: example.row_id)
    cause = first.problem or ("no finite loss" if first.loss is None else f"a loss of {first.loss:g}")
    return (
        f"The loss of {len(unknown)} of {len(evidence.examples)} examples of the {role} is unknown ({cause})."
    )


def _other_tokens(request: RegressionRequest) -> str:
    """Losses are means over tokens: where the tokens differ, they measure different things."""
    num_other = sum(
        mine.num_answer_tokens != other.num_answer_tokens or mine.expected != other.expected
        for mine, other in _pairs(request)
    )
    if not num_other:
        return ""
    return (
        f"The expected answers of {num_other} rows differ, or were cut into other tokens: "
        "losses of different tokenizers cannot be compared."
    )


def _pairs(request: RegressionRequest) -> list[tuple[ExampleResult, ExampleResult]]:
    baseline = request.baseline.examples if request.baseline else ()
    by_row = {example.row_id: example for example in baseline}
    return [
        (example, by_row[example.row_id])
        for example in sorted(request.candidate.examples, key=lambda example: example.row_id)
    ]


def _table(request: RegressionRequest) -> Floats:
    """Shape (pairs, 4): losses in nats and correctness, the candidate's before the baseline's."""
    rows = [(mine.loss, other.loss, mine.is_correct, other.is_correct) for mine, other in _pairs(request)]
    return np.array(rows, dtype=np.float64)


def _statistics(limits: RegressionLimits) -> dict[str, Statistic]:
    def loss_increase(means: Floats) -> Floats:
        floor = np.maximum(means[..., BASELINE_LOSS], limits.min_baseline_loss)
        return (means[..., CANDIDATE_LOSS] - means[..., BASELINE_LOSS]) / floor

    def accuracy_change(means: Floats) -> Floats:
        return means[..., CANDIDATE_CORRECT] - means[..., BASELINE_CORRECT]

    def perplexity_ratio(means: Floats) -> Floats:
        difference = means[..., CANDIDATE_LOSS] - means[..., BASELINE_LOSS]
        return np.exp(np.minimum(difference, MAX_LOG_RATIO))

    return {
        "loss_increase": loss_increase,
        "accuracy_change": accuracy_change,
        "perplexity_ratio": perplexity_ratio,
    }


def _checks(measured: Mapping[str, Estimate], *, limits: RegressionLimits) -> list[Check]:
    loss, accuracy = measured["loss_increase"], measured["accuracy_change"]
    ratio, lowest = measured["perplexity_ratio"], -limits.max_accuracy_drop
    return [
        Check(
            is_beyond=loss.value > limits.max_loss_increase,
            is_wholly_beyond=loss.low > limits.max_loss_increase,
            reason=f"The loss changed by {_told(loss, how='+.1%')}; "
            f"the limit is {limits.max_loss_increase:+.1%}.",
        ),
        Check(
            is_beyond=accuracy.value < lowest,
            is_wholly_beyond=accuracy.high < lowest,
            reason=f"The accuracy changed by {_told(accuracy, how='+.1f', scale=100, unit=' points')}; "
            f"the limit is {100 * lowest:+.1f} points.",
        ),
        Check(
            is_beyond=ratio.value > limits.max_perplexity_ratio,
            is_wholly_beyond=ratio.low > limits.max_perplexity_ratio,
            reason=f"The perplexity is {_told(ratio, how='.3g')} times the baseline's; "
            f"the limit is {limits.max_perplexity_ratio:g}.",
        ),
    ]


def _told(estimate: Estimate, *, how: str, scale: float = 1, unit: str = "") -> str:
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (format(scale * number, how) for number in numbers)
    return f"{value}{unit} (95 % interval {low} to {high}, n = {estimate.num_samples})"


def _decide(checks: list[Check]) -> tuple[Outcome, tuple[str, ...]]:
    broken = tuple(check.reason for check in checks if check.is_wholly_beyond)
    if broken:
        return Outcome.REGRESSED, broken
    doubtful = tuple(check.reason for check in checks if check.is_beyond)
    if doubtful:
        return Outcome.WATCH, doubtful
    return Outcome.PASS, tuple(check.reason for check in checks)


def _verdict(
    request: RegressionRequest,
    *,
    outcome: Outcome,
    reasons: tuple[str, ...],
    now: datetime,
    measured: Mapping[str, Estimate] | None = None,
) -> Verdict:
    baseline, measured = request.baseline, measured or {}
    return Verdict(
        id=request.verdict_id,
        checkpoint_id=request.candidate.checkpoint_id,
        suite_id=request.candidate.suite_id,
        evaluation_id=request.candidate.evaluation_id,
        baseline_checkpoint_id=baseline.checkpoint_id if baseline else None,
        baseline_evaluation_id=baseline.evaluation_id if baseline else None,
        outcome=outcome,
        reasons=reasons,
        num_pairs=len(request.candidate.examples) if measured else 0,
        decided_at=now,
        loss_increase=measured.get("loss_increase"),
        accuracy_change=measured.get("accuracy_change"),
        perplexity_ratio=measured.get("perplexity_ratio"),
    )
