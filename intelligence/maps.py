"""Maps from a model's own confidence to a calibrated one: fitted here, and applied to many answers at once.

Temperature divides the logits of every token (Guo et al. 2017, "On calibration of modern neural networks",
section 4.2). What it does to the probability of a whole sequence cannot be had from that probability: it
depends on all the tokens that did not come. So an evaluation keeps the sequence's log-probability at each of
`TEMPERATURES`, and between them it is interpolated. A greedy answer is the same at every temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intelligence.errors import InvalidSample
from intelligence.resampling import Floats
from registry.calibrations import CalibrationMap, MapKind
from registry.records import TEMPERATURES, Estimate

IDENTITY = CalibrationMap(kind=MapKind.IDENTITY, num_fitted=0)

# No answer is taken for certain: one certain mistake would outweigh all else.
MIN_PROBABILITY = 1e-9
NUM_TRIED = 601
CHI_SQUARE_95 = 3.841458820694124

LOG_TEMPERATURES = np.log(np.array(TEMPERATURES))


@dataclass(frozen=True)
class Answers:
    """n answers: confidence and correctness, shape (n,); log-probabilities at each temperature, (n, k).

    `tempered` is None where an evaluation did not keep them.
    """

    confidence: Floats
    correct: Floats
    tempered: Floats | None

    def __len__(self) -> int:
        return len(self.confidence)


def apply(how: CalibrationMap, *, answers: Answers) -> Floats:
    """Calibrated confidences, shape (n,). `InvalidSample` where a temperature map lacks what it needs."""
    if how.kind is MapKind.IDENTITY:
        return answers.confidence
    if how.kind is MapKind.ISOTONIC:
        places, values = np.array(how.knots).T
        calibrated: Floats = np.interp(answers.confidence, places, values)
        return calibrated
    if answers.tempered is None or how.temperature is None:
        raise InvalidSample("The probabilities of these answers at other temperatures are not known.")
    return np.exp(tempered_logprobs(answers.tempered, temperature=how.temperature.value))


def tempered_logprobs(table: Floats, *, temperature: float) -> Floats:
    """Log-probabilities (n,) at a temperature from those at `TEMPERATURES` (n, k): a local cubic in log T."""
    place = float(np.log(temperature))
    first = int(np.clip(np.searchsorted(LOG_TEMPERATURES, place) - 2, 0, len(LOG_TEMPERATURES) - 4))
    nodes = LOG_TEMPERATURES[first : first + 4]
    weights = [
        np.prod([(place - other) / (node - other) for other in nodes if other != node]) for node in nodes
    ]
    result: Floats = np.minimum(table[:, first : first + 4] @ np.array(weights), 0.0)
    return result


def fit_temperature(answers: Answers) -> CalibrationMap | None:
    """The temperature under which right and wrong are most likely, with its profile-likelihood interval.

    None where the temperatures were not kept, and where the best one lies at their end: it is then beyond.
    """
    if answers.tempered is None:
        return None
    tried = np.linspace(LOG_TEMPERATURES[0], LOG_TEMPERATURES[-1], NUM_TRIED)
    losses = np.array([_loss_at(place, answers=answers) for place in tried])
    best = int(losses.argmin())
    if best in (0, NUM_TRIED - 1):
        return None
    found = _minimum(
        lambda place: _loss_at(place, answers=answers), low=tried[best - 1], high=tried[best + 1]
    )
    inside = tried[2 * (losses - losses[best]) <= CHI_SQUARE_95]
    temperature = Estimate(
        value=float(np.exp(found)),
        low=float(np.exp(min(inside[0], found))),
        high=float(np.exp(max(inside[-1], found))),
        num_samples=len(answers),
    )
    return CalibrationMap(kind=MapKind.TEMPERATURE, temperature=temperature, num_fitted=len(answers))


def fit_isotonic(answers: Answers) -> CalibrationMap:
    """The non-decreasing function of least squares, by pooling adjacent violators (Ayer et al. 1955).

    With few rows it follows chance (Niculescu-Mizil & Caruana 2005); whether it helps, other rows say.
    """
    places, inverse = np.unique(answers.confidence, return_inverse=True)
    counts = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, weights=answers.correct) / counts
    blocks: list[tuple[float, float, int, int]] = []  # mean, weight, first, last
    for index, (mean, count) in enumerate(zip(means.tolist(), counts.tolist(), strict=True)):
        block = (mean, count, index, index)
        while blocks and blocks[-1][0] >= block[0]:
            block = _pooled(blocks.pop(), block)
        blocks.append(block)
    knots: dict[float, float] = {}
    for mean, _, first, last in blocks:
        level = min(1.0, max(0.0, mean))
        knots |= {float(places[first]): level, float(places[last]): level}
    return CalibrationMap(kind=MapKind.ISOTONIC, knots=tuple(knots.items()), num_fitted=len(answers))


def _pooled(
    before: tuple[float, float, int, int], after: tuple[float, float, int, int]
) -> tuple[float, float, int, int]:
    weight = before[1] + after[1]
    return (before[0] * before[1] + after[0] * after[1]) / weight, weight, before[2], after[3]


def _loss_at(place: float, *, answers: Answers) -> float:
    """Negative log-likelihood, in nats, of which answers are right, at the temperature e^place."""
    table = answers.tempered
    if table is None:
        raise InvalidSample("The probabilities of these answers at other temperatures are not known.")
    chance = np.exp(tempered_logprobs(table, temperature=math.exp(place)))
    chance = np.clip(chance, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return -float((answers.correct * np.log(chance) + (1 - answers.correct) * np.log1p(-chance)).sum())


def _minimum(function: Callable[[float], float], *, low: float, high: float) -> float:
    """Golden-section search (Kiefer 1953) between two bounds, to 1e-6."""
    ratio = (5**0.5 - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
