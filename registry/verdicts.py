"""The parts of a verdict: its slices, the drift since the first anchor, and what it could have found."""

from __future__ import annotations

from pydantic import Field

from registry.states import Outcome
from registry.values import Estimate, Record


class SliceVerdict(Record):
    """One difficulty or tag of a comparison. The p-values are adjusted for the number of slices.

    `p_loss` and `p_accuracy` are one-sided, of the hypothesis that the slice keeps its limit.
    """

    kind: str = Field(pattern="^(difficulty|tag)$")
    name: str
    outcome: Outcome
    num_pairs: int = Field(ge=2)
    loss_increase: Estimate
    accuracy_change: Estimate
    p_loss: float = Field(ge=0, le=1)
    p_accuracy: float = Field(ge=0, le=1)


class Drift(Record):
    """The candidate against the first checkpoint that ever anchored a comparison on this suite."""

    checkpoint_id: str
    evaluation_id: str
    outcome: Outcome
    num_pairs: int = Field(ge=0)
    loss_increase: Estimate | None = None
    accuracy_change: Estimate | None = None
    perplexity_ratio: Estimate | None = None


class Power(Record):
    """What a comparison of this size can find: whether n suffices.

    `detectable_increase` is the smallest relative increase of the loss that is told from none with 80 %
    power at the two-sided 5 % level; `num_pairs_needed` are those that bring it down to the limit.
    """

    detectable_increase: float = Field(ge=0)
    num_pairs_needed: int = Field(ge=1)
    num_clusters: int = Field(ge=1, description="independent groups of rows; the rows, where none share")
    suffices: bool
