"""Scores of several checkpoints on the same rows, drawn anew together, so that differences have an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from intelligence.pairs import cluster_numbers
from intelligence.resampling import Floats
from intelligence.statistics import PERCENTILES, bootstrap_p, redrawn_means
from registry.records import Estimate, ExampleResult, Lead, Record


class RankingWeights(Record):
    """Weights of the composite score (design, section 6)."""

    loss: float = Field(default=0.4, ge=0)
    accuracy: float = Field(default=0.4, ge=0)
    speed: float = Field(default=0.2, ge=0)

    @model_validator(mode="after")
    def _has_a_measured_term(self) -> RankingWeights:
        if self.loss + self.accuracy <= 0:
            raise ValueError("loss and accuracy cannot both weigh nothing")
        return self

    @property
    def measured(self) -> dict[str, float]:
        """The weights of the terms that are measured, summing to 1."""
        total = self.loss + self.accuracy
        return {"loss": self.loss / total, "accuracy": self.accuracy / total}

    def terms(self, loss: Floats, accuracy: Floats) -> dict[str, Floats]:
        """The terms of the score for means of any shape: loss in nats, accuracy in [0, 1]."""
        return {"loss": self.measured["loss"] / (1 + loss), "accuracy": self.measured["accuracy"] * accuracy}

    def total(self, loss: Floats, accuracy: Floats) -> Floats:
        """The score: the sum of its terms."""
        terms = self.terms(loss, accuracy)
        return terms["loss"] + terms["accuracy"]


@dataclass(frozen=True)
class Scores:
    """k checkpoints on n rows: loss, accuracy and score, shape (k,); scores redrawn, shape (draws, k)."""

    loss: Floats
    accuracy: Floats
    values: Floats
    drawn: Floats
    num_examples: int

    def estimate(self, one: int) -> Estimate:
        """The score of one of them."""
        return self._estimate(float(self.values[one]), drawn=self.drawn[:, one])

    def lead(self, one: int, *, over: int) -> Lead:
        """By how much one exceeds another."""
        drawn = self.drawn[:, one] - self.drawn[:, over]
        return Lead(
            difference=self._estimate(float(self.values[one] - self.values[over]), drawn=drawn),
            standard_error=self.standard_error(one, other=over),
            p_value=bootstrap_p(drawn),
        )

    def standard_error(self, one: int, *, other: int) -> float:
        """Of the difference of two scores."""
        return float((self.drawn[:, one] - self.drawn[:, other]).std(ddof=1))

    def is_tied(self, one: int, *, best: int) -> bool:
        """Within one standard error of the highest score."""
        gap = float(self.values[best] - self.values[one])
        return gap <= self.standard_error(one, other=best)

    def is_on_front(self, one: int) -> bool:
        """No other is at least as good in loss and in accuracy, and better in one of them."""
        is_as_good = (self.loss <= self.loss[one]) & (self.accuracy >= self.accuracy[one])
        is_better = (self.loss < self.loss[one]) | (self.accuracy > self.accuracy[one])
        return not bool((is_as_good & is_better).any())

    def _estimate(self, value: float, *, drawn: Floats) -> Estimate:
        low, high = (float(bound) for bound in np.percentile(drawn, PERCENTILES))
        return Estimate(
            value=value, low=min(low, value), high=max(high, value), num_samples=self.num_examples
        )


def score(
    sheets: Sequence[Sequence[ExampleResult]],
    *,
    weights: RankingWeights,
    num_resamples: int,
    rng: np.random.Generator,
) -> Scores:
    """Score each sheet of examples; all of them hold the same rows, in any order, every loss known.

    Rows of one cluster are drawn together: what they share makes them say less than as many others.
    """
    ordered = [sorted(sheet, key=lambda example: example.row_id) for sheet in sheets]
    losses = [[example.loss for example in sheet] for sheet in ordered]
    correct = [[example.is_correct for example in sheet] for sheet in ordered]
    table = np.array([*losses, *correct], dtype=np.float64).T
    loss, accuracy = np.split(table.mean(axis=0), 2)
    clusters = cluster_numbers(ordered[0])
    drawn = redrawn_means(table, clusters=clusters, num_resamples=num_resamples, rng=rng)
    return Scores(
        loss=loss,
        accuracy=accuracy,
        values=weights.total(loss, accuracy),
        drawn=weights.total(*np.split(drawn, 2, axis=1)),
        num_examples=len(table),
    )
