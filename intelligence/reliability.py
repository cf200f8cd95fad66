"""How well confidences say how often they are right: calibration errors and the Brier score, with intervals.

A calibration error is a sum of absolute values, so chance alone makes it positive: the fewer the rows, the
larger. Therefore the debiased estimate stands beside it (Kumar, Liang & Ma 2019, "Verified uncertainty
calibration", section 4; Bröcker 2012, Climate Dynamics 39, 655, for the Brier score). Intervals hold the
basic bootstrap interval (Davison & Hinkley 1997, section 5.2): percentiles alone would add the bias again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intelligence.errors import InvalidSample
from intelligence.resampling import Floats, resampled_means
from intelligence.statistics import PERCENTILES, wilson_interval
from registry.calibrations import Reliability, ReliabilityBin
from registry.records import Estimate

# The bins that people know: six, the lower half of the scale in one.
EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NUM_ADAPTIVE_BINS = 10

Places = NDArray[np.intp]

# What cannot leave [0, 1]; the rest may be negative.
SHARES = {"ece", "debiased_ece", "adaptive_ece", "brier", "reliability", "resolution", "uncertainty"} | {
    "overconfidence",
    "underconfidence",
}


@dataclass(frozen=True)
class _Columns:
    """Where in a table of shape (n, k) the parts of a measure lie; means of columns are all it needs."""

    table: Floats
    num_adaptive: int

    def measures(self, means: Floats) -> dict[str, Floats]:
        """From column means of shape (..., k): every measure, shape (...)."""
        num_bins, num_rows = len(EDGES) - 1, len(self.table)
        share, confidence, correct = (
            means[..., part * num_bins : (part + 1) * num_bins] for part in range(3)
        )
        first = 3 * num_bins
        adaptive, brier = means[..., first : first + self.num_adaptive], means[..., -1]
        gap = confidence - correct
        size = np.maximum(share, 1 / num_rows)
        accuracy, base_rate = correct / size, correct.sum(axis=-1)
        reliability = (gap**2 / size).sum(axis=-1)
        resolution = (share * (accuracy - base_rate[..., None]) ** 2).sum(axis=-1)
        uncertainty = base_rate * (1 - base_rate)
        return {
            "ece": np.abs(gap).sum(axis=-1),
            "debiased_ece": _debiased(gap / size, share=share, accuracy=accuracy, num_rows=num_rows),
            "adaptive_ece": np.abs(adaptive).sum(axis=-1),
            "brier": brier,
            "reliability": reliability,
            "resolution": resolution,
            "uncertainty": uncertainty,
            "within_bins": brier - reliability + resolution - uncertainty,
            "confidence_gap": gap.sum(axis=-1),
            "overconfidence": np.maximum(gap, 0).sum(axis=-1),
            "underconfidence": np.maximum(-gap, 0).sum(axis=-1),
        }


def measure(
    confidence: Floats, *, correct: Floats, num_resamples: int, rng: np.random.Generator
) -> Reliability:
    """Reliability of confidences in [0, 1] against correctness in {0, 1}, both of shape (n,), n at least 2.

    Brier score decomposed as by Murphy (1973, J. Applied Meteorology 12, 595); what confidences differ by
    within a bin is `within_bins` (Stephenson et al. 2008, Weather and Forecasting 23, 752). The order of the
    rows does not matter to any value. `InvalidSample` for what is no probability.
    """
    _check(confidence, correct=correct)
    columns = _columns(confidence, correct=correct)
    values = columns.measures(columns.table.mean(axis=0))
    drawn = columns.measures(resampled_means(columns.table, num_resamples=num_resamples, rng=rng))
    # In the bootstrap's world the truth is the plain estimate, also for the debiased one.
    truths = values | {"debiased_ece": values["ece"]}
    estimates = {
        name: _interval(
            name, value=float(value), truth=float(truths[name]), drawn=drawn[name], num_rows=len(confidence)
        )
        for name, value in values.items()
    }
    # Where there is hardly an error, the debiased interval holds the truth more often than the plain one.
    estimates["ece"] = _widened(estimates["debiased_ece"], value=estimates["ece"].value)
    return Reliability(bins=bins(confidence, correct=correct), **estimates)


def bins(confidence: Floats, *, correct: Floats) -> tuple[ReliabilityBin, ...]:
    """The reliability diagram's bins, empty ones included."""
    places = _fixed_places(confidence)
    return tuple(
        _bin(place, confidence=confidence[places == place], correct=correct[places == place])
        for place in range(len(EDGES) - 1)
    )


def _check(confidence: Floats, *, correct: Floats) -> None:
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) < 2:
        raise InvalidSample(f"{confidence.shape} confidences of {correct.shape} answers cannot be measured.")
    # A comparison with NaN is false, so NaN is refused too.
    if not ((confidence >= 0) & (confidence <= 1)).all() or not np.isin(correct, (0.0, 1.0)).all():
        raise InvalidSample("A confidence is a number from 0 to 1, and an answer right (1) or wrong (0).")


def _columns(confidence: Floats, *, correct: Floats) -> _Columns:
    fixed = _one_hot(_fixed_places(confidence), size=len(EDGES) - 1)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, NUM_ADAPTIVE_BINS + 1))[1:-1])
    adaptive = _one_hot(np.searchsorted(edges, confidence, side="right"), size=len(edges) + 1)
    error = (confidence - correct)[:, None]
    parts = (fixed, fixed * confidence[:, None], fixed * correct[:, None], adaptive * error, error**2)
    return _Columns(np.hstack(parts), num_adaptive=adaptive.shape[1])


def _fixed_places(confidence: Floats) -> Places:
    return np.searchsorted(np.array(EDGES[1:-1]), confidence, side="right")


def _one_hot(places: Places, *, size: int) -> Floats:
    return np.eye(size, dtype=np.float64)[places]


def _debiased(gap: Floats, *, share: Floats, accuracy: Floats, num_rows: int) -> Floats:
    """Each bin's squared gap less its sampling variance; a bin whose gap chance explains counts nothing.

    The variance is that of Jeffreys' estimate of the accuracy, since a bin that is all right has some too.
    """
    count = np.maximum(share * num_rows, 1.0)
    smoothed = (accuracy * count + 0.5) / (count + 1)
    variance = smoothed * (1 - smoothed) / count
    result: Floats = (share * np.sqrt(np.maximum(gap**2 - variance, 0.0))).sum(axis=-1)
    return result


def _interval(name: str, *, value: float, truth: float, drawn: Floats, num_rows: int) -> Estimate:
    """The basic interval, and the percentiles centred on the value: what either holds.

    The basic one alone is too short above an error that came out small by chance.
    """
    lowest, highest = (float(bound) for bound in np.percentile(drawn, PERCENTILES))
    centre = float(drawn.mean())
    low = min(value + truth - highest, value + lowest - centre)
    high = max(value + truth - lowest, value + highest - centre)
    if name in SHARES:
        value, low, high = (min(1.0, max(0.0, number)) for number in (value, low, high))
    return Estimate(value=value, low=min(low, value), high=max(high, value), num_samples=num_rows)


def _widened(estimate: Estimate, *, value: float) -> Estimate:
    return estimate.changed(value=value, low=min(estimate.low, value), high=max(estimate.high, value))


def _bin(place: int, *, confidence: Floats, correct: Floats) -> ReliabilityBin:
    count = len(confidence)
    return ReliabilityBin(
        low=EDGES[place],
        high=EDGES[place + 1],
        num_examples=count,
        mean_confidence=float(confidence.mean()) if count else None,
        accuracy=wilson_interval(int(correct.sum()), num_trials=count) if count else None,
    )
