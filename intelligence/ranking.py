"""Ranks accepted checkpoints by the composite score, each term visible, each number with its interval.

score = w_loss / (1 + loss) + w_accuracy * accuracy, the weights renormalised to sum to 1. The speed term
is left out while speed is not measured on an idle GPU: a number that depends on the neighbours is no merit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from intelligence.pairs import cluster_numbers, is_one_cluster
from intelligence.scores import RankingWeights, Scores, score
from intelligence.summary import is_known
from registry.records import Checkpoint, Estimate, Evaluation, ExampleResult, Ranking, RankingEntry
from registry.states import CheckpointState


@dataclass(frozen=True)
class Candidate:
    """A checkpoint with its answered evaluation on the suite, and every example of it."""

    checkpoint: Checkpoint
    evaluation: Evaluation
    examples: tuple[ExampleResult, ...]


@dataclass(frozen=True)
class Known:
    """A candidate that may be ranked: accepted, with a known loss on every row."""

    candidate: Candidate
    loss: Estimate
    accuracy: Estimate

    @property
    def rows(self) -> tuple[str, ...]:
        """The ids of the rows it answered, sorted."""
        return tuple(sorted(example.row_id for example in self.candidate.examples))

    def seniority(self, *, served: str | None) -> tuple[bool, datetime, int, str]:
        """Sorts the served one first, then the older, the lower step, the smaller id."""
        checkpoint = self.candidate.checkpoint
        return checkpoint.id != served, checkpoint.created_at, checkpoint.step, checkpoint.id


def rank(
    candidates: Sequence[Candidate],
    *,
    weights: RankingWeights,
    min_checkpoints: int = 3,
    num_resamples: int = 2000,
    served_checkpoint_id: str | None,
    suite_id: str,
    ranking_id: str,
    evidence_sha256: str,
    now: datetime,
    rng: np.random.Generator,
) -> Ranking:
    """Accepted checkpoints with a known loss, best first; none below `min_checkpoints`, with a note.

    The first place goes by the one-standard-error rule (Breiman et al. 1984, Classification and Regression
    Trees, section 3.4.3): of those whose score is within one standard error of the highest, the served
    one, else the oldest. So nothing new is served for a difference that another draw of the suite could
    turn. The other places go by score. Equal scores go to the served one, then the older, then the lower
    step, then the smaller id: the same candidates and `rng` always give the same ranking.
    """
    eligible = sorted(_eligible(candidates), key=lambda one: one.seniority(served=served_checkpoint_id))
    note = _why_unranked(eligible, min_checkpoints=min_checkpoints)
    entries: tuple[RankingEntry, ...] = ()
    if not note:
        sheets = [one.candidate.examples for one in eligible]
        scores = score(sheets, weights=weights, num_resamples=num_resamples, rng=rng)
        entries = _entries(eligible, scores=scores, weights=weights)
    return Ranking(
        id=ranking_id,
        suite_id=suite_id,
        served_checkpoint_id=served_checkpoint_id,
        evidence_sha256=evidence_sha256,
        entries=entries,
        weights=weights.measured,
        num_eligible=len(eligible),
        note=note,
        made_at=now,
    )


def _why_unranked(eligible: Sequence[Known], *, min_checkpoints: int) -> str:
    if len(eligible) < max(1, min_checkpoints):
        return (
            f"{len(eligible)} accepted checkpoints with a known loss; {min_checkpoints} are needed to rank."
        )
    if is_one_cluster(cluster_numbers(eligible[0].candidate.examples)):
        return "All rows of the suite are of one cluster: no difference of scores has a known error."
    return ""


def _eligible(candidates: Sequence[Candidate]) -> list[Known]:
    """What is known, and has the same rows as most: what lacks a row cannot be paired."""
    known = [found for found in map(_known, candidates) if found is not None]
    num_having = Counter(one.rows for one in known)
    usual = max(num_having, key=lambda rows: (num_having[rows], rows), default=())
    return [one for one in known if one.rows == usual]


def _known(candidate: Candidate) -> Known | None:
    summary = candidate.evaluation.summary
    is_whole = len(candidate.examples) > 1 and all(is_known(example) for example in candidate.examples)
    is_accepted = candidate.checkpoint.state is CheckpointState.ACCEPTED
    if summary is None or summary.loss is None or not is_whole or not is_accepted:
        return None
    return Known(candidate, loss=summary.loss, accuracy=summary.accuracy)


def _entries(
    eligible: Sequence[Known], *, scores: Scores, weights: RankingWeights
) -> tuple[RankingEntry, ...]:
    """They come senior first: a stable sort leaves equals so, and the first of the tied is the senior."""
    order = sorted(range(len(eligible)), key=lambda one: -scores.values[one])
    tied = [one for one in range(len(eligible)) if scores.is_tied(one, best=order[0])]
    order = [tied[0], *(one for one in order if one != tied[0])]
    entries = []
    for place, one in enumerate(order):
        terms = weights.terms(scores.loss[one], scores.accuracy[one])
        entries.append(
            RankingEntry(
                rank=place + 1,
                checkpoint_id=eligible[one].candidate.checkpoint.id,
                evaluation_id=eligible[one].candidate.evaluation.id,
                score=scores.estimate(one),
                loss=eligible[one].loss,
                accuracy=eligible[one].accuracy,
                terms={name: float(term) for name, term in terms.items()},
                is_tied_with_best=one in tied,
                is_on_front=scores.is_on_front(one),
                lead=scores.lead(one, over=order[place + 1]) if place + 1 < len(order) else None,
            )
        )
    return tuple(entries)
