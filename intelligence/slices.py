"""Difficulties and tags of a comparison, each judged, with a correction for looking at many of them.

Of twenty slices one lies beyond its 95 % interval by chance. So a slice counts as regressed only where its
one-sided p, adjusted by Holm over all slices and both measures, is below 2.5 %: the level at which the
whole suite's interval lies beyond its limit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from intelligence.pairs import BASELINE_LOSS, CANDIDATE_LOSS, Pairs, measure
from intelligence.statistics import holm, p_above_zero
from registry.messages import RegressionLimits
from registry.states import Outcome
from registry.verdicts import SliceVerdict

LEVEL = 0.025  # one side of a 95 % interval

Places = NDArray[np.bool_]
Slice = tuple[str, str, Places]


def judge_slices(
    pairs: Pairs, *, limits: RegressionLimits, rng: np.random.Generator
) -> tuple[tuple[SliceVerdict, ...], int]:
    """Every difficulty and tag with enough pairs, by kind and name; and how many slices had too few.

    A slice that is the whole suite is left out: it was judged as such.
    """
    found = [one for one in _slices(pairs) if not one[2].all()]
    large = [one for one in found if _is_large(pairs.only(one[2]), limits=limits)]
    tested = [(kind, name, pairs.only(places)) for kind, name, places in large]
    p_values = holm([p for _, _, part in tested for p in _p_values(part, limits=limits)])
    verdicts = (
        _verdict(part, kind=kind, name=name, p_loss=p_loss, p_accuracy=p_accuracy, limits=limits, rng=rng)
        for (kind, name, part), p_loss, p_accuracy in zip(tested, p_values[::2], p_values[1::2], strict=True)
    )
    return tuple(verdicts), len(found) - len(large)


def _slices(pairs: Pairs) -> Iterator[Slice]:
    difficulties = np.array([example.difficulty for example in pairs.examples])
    for name in sorted(set(difficulties.tolist())):
        yield "difficulty", name, difficulties == name
    tags = [set(example.tags) for example in pairs.examples]
    for name in sorted(set().union(*tags)):
        yield "tag", name, np.array([name in mine for mine in tags], dtype=np.bool_)


def _is_large(part: Pairs, *, limits: RegressionLimits) -> bool:
    return part.num_clusters >= limits.min_slice_pairs


def _p_values(part: Pairs, *, limits: RegressionLimits) -> tuple[float, float]:
    """Of the loss and of the accuracy keeping their limits.

    An increase beyond a limit is a positive mean of candidate - (1 + limit) * baseline (Fieller 1954, JRSS B
    16, 175): no ratio is left whose distribution would have to be guessed.
    """
    limit, floor = limits.max_slice_loss_increase, limits.min_baseline_loss
    candidate, baseline = part.table[:, CANDIDATE_LOSS], part.table[:, BASELINE_LOSS]
    # Below the floor the allowance is a constant, as it is in the estimate.
    allowance = limit * baseline if baseline.mean() >= floor else np.full(len(baseline), limit * floor)
    lost = -part.accuracy_change - limits.max_slice_accuracy_drop
    return (
        p_above_zero(candidate - baseline - allowance, clusters=part.clusters),
        p_above_zero(lost, clusters=part.clusters),
    )


def _verdict(
    part: Pairs,
    *,
    kind: str,
    name: str,
    p_loss: float,
    p_accuracy: float,
    limits: RegressionLimits,
    rng: np.random.Generator,
) -> SliceVerdict:
    measured = measure(part, limits=limits, rng=rng)
    loss, accuracy = measured["loss_increase"], measured["accuracy_change"]
    is_beyond = (
        loss.value > limits.max_slice_loss_increase or accuracy.value < -limits.max_slice_accuracy_drop
    )
    outcome = Outcome.WATCH if is_beyond else Outcome.PASS
    return SliceVerdict(
        kind=kind,
        name=name,
        outcome=Outcome.REGRESSED if min(p_loss, p_accuracy) < LEVEL else outcome,
        num_pairs=len(part.table),
        loss_increase=loss,
        accuracy_change=accuracy,
        p_loss=p_loss,
        p_accuracy=p_accuracy,
    )
