"""Ranks accepted checkpoints by the composite score, each term visible.

score = w_loss / (1 + loss) + w_accuracy * accuracy, the weights renormalised to sum to 1. The speed term
is left out while speed is not measured on an idle GPU: a number that depends on the neighbours is no merit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field, model_validator

from registry.records import Checkpoint, EvaluationSummary, Ranking, RankingEntry, Record
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


def rank(
    candidates: Sequence[Candidate],
    *,
    weights: RankingWeights,
    min_checkpoints: int,
    served_checkpoint_id: str | None,
    suite_id: str,
    ranking_id: str,
    now: datetime,
) -> Ranking:
    """Accepted checkpoints with a known loss, best first; none below `min_checkpoints`, with a note.

    Deterministic: equal scores go to the served one, then the older, then the smaller id.
    """
    eligible = [item for item in candidates if _is_eligible(item)]
    common = {
        "id": ranking_id,
        "suite_id": suite_id,
        "weights": weights.measured,
        "num_eligible": len(eligible),
        "made_at": now,
    }
    if len(eligible) < min_checkpoints:
        note = f"{len(eligible)} accepted checkpoints; {min_checkpoints} are needed to rank."
        return Ranking(entries=(), note=note, **common)
    order = sorted(
        ((_terms(summary, weights=weights), checkpoint, summary) for checkpoint, summary in eligible),
        key=lambda item: (
            -sum(item[0].values()),
            item[1].id != served_checkpoint_id,
            item[1].created_at,
            item[1].id,
        ),
    )
    entries = tuple(
        _entry(place, checkpoint=checkpoint, summary=summary, terms=terms)
        for place, (terms, checkpoint, summary) in enumerate(order, start=1)
    )
    return Ranking(entries=entries, note="", **common)


def _is_eligible(candidate: Candidate) -> bool:
    checkpoint, summary = candidate
    return checkpoint.state is CheckpointState.ACCEPTED and summary.loss is not None


def _terms(summary: EvaluationSummary, *, weights: RankingWeights) -> dict[str, float]:
    if summary.loss is None:
        raise ValueError("a checkpoint without a known loss cannot be ranked")
    measured = weights.measured
    return {
        "loss": measured["loss"] / (1 + summary.loss.value),
        "accuracy": measured["accuracy"] * summary.accuracy.value,
    }


def _entry(
    place: int, *, checkpoint: Checkpoint, summary: EvaluationSummary, terms: dict[str, float]
) -> RankingEntry:
    if summary.loss is None:
        raise ValueError(f"{checkpoint.id} has no known loss")
    return RankingEntry(
        rank=place,
        checkpoint_id=checkpoint.id,
        score=sum(terms.values()),
        loss=summary.loss,
        accuracy=summary.accuracy,
        terms=terms,
    )
