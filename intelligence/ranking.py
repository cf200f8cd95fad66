"""Ranks accepted checkpoints by the composite score, each term visible.

score = w_loss / (1 + loss) + w_accuracy * accuracy, the weights renormalised to sum to 1. The speed term
is left out while speed is not measured on an idle GPU: a number that depends on the neighbours is no merit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field, model_validator

from registry.records import Checkpoint, Estimate, EvaluationSummary, Ranking, RankingEntry, Record
from registry.states import CheckpointState


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


Candidate = tuple[Checkpoint, EvaluationSummary]


@dataclass(frozen=True)
class Scored:
    """An eligible checkpoint with the terms of its score."""

    checkpoint: Checkpoint
    loss: Estimate
    accuracy: Estimate
    terms: dict[str, float]

    @property
    def score(self) -> float:
        """The sum of the terms, higher is better."""
        return sum(self.terms.values())


def rank(
    candidates: Sequence[Candidate],
    *,
    weights: RankingWeights,
    min_checkpoints: int = 3,
    served_checkpoint_id: str | None,
    suite_id: str,
    ranking_id: str,
    now: datetime,
) -> Ranking:
    """Accepted checkpoints with a known loss, best first; none below `min_checkpoints`, with a note.

    Deterministic: equal scores go to the served one, then the older, then the lower step, then the
    smaller id.
    """
    scored = [item for item in (_scored(one, weights=weights) for one in candidates) if item is not None]
    is_enough = len(scored) >= min_checkpoints
    note = f"{len(scored)} accepted checkpoints with a known loss; {min_checkpoints} are needed to rank."
    return Ranking(
        id=ranking_id,
        suite_id=suite_id,
        entries=_entries(scored, served_checkpoint_id=served_checkpoint_id) if is_enough else (),
        weights=weights.measured,
        num_eligible=len(scored),
        note="" if is_enough else note,
        made_at=now,
    )


def _scored(candidate: Candidate, *, weights: RankingWeights) -> Scored | None:
    """None for what may not be ranked."""
    checkpoint, summary = candidate
    if checkpoint.state is not CheckpointState.ACCEPTED or summary.loss is None:
        return None
    measured = weights.measured
    terms = {
        "loss": measured["loss"] / (1 + summary.loss.value),
        "accuracy": measured["accuracy"] * summary.accuracy.value,
    }
    return Scored(checkpoint, loss=summary.loss, accuracy=summary.accuracy, terms=terms)


def _entries(scored: Sequence[Scored], *, served_checkpoint_id: str | None) -> tuple[RankingEntry, ...]:
    def order(item: Scored) -> tuple[float, bool, datetime, int, str]:
        checkpoint = item.checkpoint
        is_other = checkpoint.id != served_checkpoint_id
        return -item.score, is_other, checkpoint.created_at, checkpoint.step, checkpoint.id

    return tuple(
        RankingEntry(
            rank=place,
            checkpoint_id=item.checkpoint.id,
            score=item.score,
            loss=item.loss,
            accuracy=item.accuracy,
            terms=item.terms,
        )
        for place, item in enumerate(sorted(scored, key=order), start=1)
    )
