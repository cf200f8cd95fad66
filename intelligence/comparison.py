"""Two checkpoints beside each other, example by example: what changed, by how much, how surely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from intelligence.errors import InvalidSample
from intelligence.pairs import cluster_numbers, is_one_cluster
from intelligence.resampling import Floats
from intelligence.scores import RankingWeights
from intelligence.statistics import PERCENTILES, Integers, bootstrap_p, mcnemar_p, redrawn_means
from intelligence.summary import is_known
from registry.messages import Evidence
from registry.records import Comparison, Contrast, Estimate, ExampleResult, Flip, SliceContrast

Pair = tuple[ExampleResult, ExampleResult]
Measure = Callable[[Floats], tuple[Floats, Floats]]

# Columns of the table of pairs.
LEFT_LOSS, RIGHT_LOSS, LEFT_CORRECT, RIGHT_CORRECT = range(4)


def compare(
    left: Evidence,
    right: Evidence,
    *,
    weights: RankingWeights,
    num_resamples: int = 2000,
    rng: np.random.Generator,
) -> Comparison:
    """Right minus left in loss (nats), accuracy and composite score, over all pairs and by slice.

    Intervals are those of the paired bootstrap, rows of one cluster drawn together. The p value of the loss
    and of the score is the bootstrap's, that of the accuracy is McNemar's, exact; where rows share something
    it is the bootstrap's too, since McNemar's takes them as independent. Slices bear no p value: they are
    many, and what they show is for a person to look at. `InvalidSample` where the two did not answer the same
    rows, each with a loss.
    """
    pairs = _pairs(left, right)
    draw = _Draw(num_resamples=num_resamples, rng=rng)
    gained = [pair for pair in pairs if pair[1].is_correct and not pair[0].is_correct]
    lost = [pair for pair in pairs if pair[0].is_correct and not pair[1].is_correct]
    table, clusters = _table(pairs), _clusters(pairs)
    loss, score, accuracy = (
        draw.contrast(table, clusters=clusters, measure=each)
        for each in (_losses, _scores(weights), _accuracies)
    )
    return Comparison(
        left_checkpoint_id=left.checkpoint_id,
        right_checkpoint_id=right.checkpoint_id,
        suite_id=left.suite_id,
        num_pairs=len(pairs),
        loss=loss,
        accuracy=accuracy.changed(
            p_value=mcnemar_p(len(gained), len(lost)) if clusters is None else accuracy.p_value
        ),
        score=score,
        slices=tuple(_slices(pairs, draw=draw)),
        gained=tuple(map(_flip, gained)),
        lost=tuple(map(_flip, lost)),
    )


class _Draw:
    """Contrasts by the paired bootstrap, all from one source of randomness."""

    def __init__(self, *, num_resamples: int, rng: np.random.Generator) -> None:
        self.num_resamples, self.rng = num_resamples, rng

    def contrast(self, table: Floats, *, clusters: Integers | None, measure: Measure) -> Contrast:
        """Both means, and right minus left with its interval."""
        left, right = (float(side) for side in measure(table.mean(axis=0)))
        means = redrawn_means(table, clusters=clusters, num_resamples=self.num_resamples, rng=self.rng)
        drawn_left, drawn_right = measure(means)
        drawn = drawn_right - drawn_left
        low, high = (float(bound) for bound in np.percentile(drawn, PERCENTILES))
        value = right - left
        difference = Estimate(value=value, low=min(low, value), high=max(high, value), num_samples=len(table))
        return Contrast(left=left, right=right, difference=difference, p_value=bootstrap_p(drawn))


def _pairs(left: Evidence, right: Evidence) -> list[Pair]:
    if left.suite_id != right.suite_id:
        raise InvalidSample(f"The suites differ: {left.suite_id} and {right.suite_id}.")
    others = {example.row_id: example for example in right.examples}
    pairs = [
        (mine, others[mine.row_id])
        for mine in sorted(left.examples, key=lambda example: example.row_id)
        if mine.row_id in others
    ]
    num_alone = len(left.examples) + len(right.examples) - 2 * len(pairs)
    if num_alone or len(pairs) < 2:
        raise InvalidSample(
            f"{len(pairs)} rows were answered by both, {num_alone} by one of them: they cannot be compared."
        )
    for side, evidence in ((0, left), (1, right)):
        num_unknown = sum(not is_known(pair[side]) for pair in pairs)
        if num_unknown:
            raise InvalidSample(
                f"{evidence.checkpoint_id} has no known loss on {num_unknown} of {len(pairs)} rows: "
                "a comparison over the rest would flatter it."
            )
    return pairs


def _table(pairs: Sequence[Pair]) -> Floats:
    rows = [(left.loss, right.loss, left.is_correct, right.is_correct) for left, right in pairs]
    return np.array(rows, dtype=np.float64)


def _clusters(pairs: Sequence[Pair]) -> Integers | None:
    return cluster_numbers([left for left, _ in pairs])


def _losses(means: Floats) -> tuple[Floats, Floats]:
    return means[..., LEFT_LOSS], means[..., RIGHT_LOSS]


def _accuracies(means: Floats) -> tuple[Floats, Floats]:
    return means[..., LEFT_CORRECT], means[..., RIGHT_CORRECT]


def _scores(weights: RankingWeights) -> Measure:
    def measure(means: Floats) -> tuple[Floats, Floats]:
        left, right = (
            weights.total(loss, accuracy)
            for loss, accuracy in zip(_losses(means), _accuracies(means), strict=True)
        )
        return left, right

    return measure


def _slices(pairs: Sequence[Pair], *, draw: _Draw) -> list[SliceContrast]:
    difficulties = sorted({left.difficulty for left, _ in pairs})
    tags = sorted({tag for left, _ in pairs for tag in left.tags})
    by_difficulty = ((name, [pair for pair in pairs if pair[0].difficulty == name]) for name in difficulties)
    by_tag = ((name, [pair for pair in pairs if name in pair[0].tags]) for name in tags)
    return [
        *(_slice(found, kind="difficulty", name=name, draw=draw) for name, found in by_difficulty),
        *(_slice(found, kind="tag", name=name, draw=draw) for name, found in by_tag),
    ]


def _slice(
    pairs: Sequence[Pair], *, kind: Literal["difficulty", "tag"], name: str, draw: _Draw
) -> SliceContrast:
    """A slice of one example, or of one cluster, has no interval, so it bears no numbers."""
    contrasts: list[Contrast | None] = [None, None]
    clusters = _clusters(pairs)
    if len(pairs) > 1 and not is_one_cluster(clusters):
        table = _table(pairs)
        contrasts = [
            draw.contrast(table, clusters=clusters, measure=each).changed(p_value=None)
            for each in (_losses, _accuracies)
        ]
    return SliceContrast(
        kind=kind, name=name, loss=contrasts[0], accuracy=contrasts[1], num_examples=len(pairs)
    )


def _flip(pair: Pair) -> Flip:
    left, right = pair
    return Flip(
        row_id=left.row_id,
        difficulty=left.difficulty,
        expected=left.expected,
        left_answer=left.answer,
        right_answer=right.answer,
    )
