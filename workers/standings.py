"""What a ranking is made of: loaded first, ranked with no transaction open, kept only if it is still so."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from config.settings import RankingSettings
from intelligence.ranking import Candidate, rank
from registry import judgements, lineage
from registry.errors import StaleWrite
from registry.files import sha256_text
from registry.ids import new_id
from registry.records import Checkpoint, Evaluation, Ranking, Suite
from registry.states import CheckpointState
from registry.store import Transaction


@dataclass(frozen=True)
class Standing:
    """Accepted checkpoints with their answered evaluations on the active suite, and what is served."""

    suite: Suite
    pairs: tuple[tuple[Checkpoint, Evaluation], ...]
    served_checkpoint_id: str | None
    ranking: Ranking | None

    def fingerprint(self, settings: RankingSettings) -> str:
        """Of all that decides a ranking, the judged numbers included."""
        judged = [
            (checkpoint.id, evaluation.id, evaluation.summary and evaluation.summary.model_dump())
            for checkpoint, evaluation in sorted(self.pairs, key=lambda pair: pair[0].id)
        ]
        parts = [self.suite.id, self.served_checkpoint_id, settings.model_dump(), judged]
        return sha256_text(json.dumps(parts, sort_keys=True))

    def is_ranked(self, settings: RankingSettings) -> bool:
        """The newest ranking was made of just this."""
        return self.ranking is not None and self.ranking.evidence_sha256 == self.fingerprint(settings)


def load(tx: Transaction) -> Standing | None:
    """What stands now; None without an active suite."""
    suite = lineage.active_suite(tx)
    if suite is None:
        return None
    active = lineage.active_deployment(tx)
    accepted = tx.find(Checkpoint, state=CheckpointState.ACCEPTED)
    found = (
        (one, lineage.answered_evaluation(tx, checkpoint_id=one.id, suite_id=suite.id)) for one in accepted
    )
    return Standing(
        suite=suite,
        pairs=tuple((checkpoint, evaluation) for checkpoint, evaluation in found if evaluation is not None),
        served_checkpoint_id=active.checkpoint_id if active else None,
        ranking=lineage.newest_ranking(tx, suite_id=suite.id),
    )


def candidates(tx: Transaction, *, standing: Standing) -> list[Candidate]:
    """With every example: many rows, so read only where something is to be ranked."""
    return [
        Candidate(checkpoint, evaluation, judgements.examples_of(tx, evaluation_id=evaluation.id))
        for checkpoint, evaluation in standing.pairs
    ]


def rank_all(
    found: list[Candidate], *, standing: Standing, settings: RankingSettings, now: datetime
) -> Ranking:
    """The ranking; its bootstrap is seeded by the evaluations, so that the same evidence ranks the same."""
    names = sorted(evaluation.id for _, evaluation in standing.pairs)
    return rank(
        found,
        weights=settings.weights,
        min_checkpoints=settings.min_checkpoints,
        num_resamples=settings.num_resamples,
        served_checkpoint_id=standing.served_checkpoint_id,
        suite_id=standing.suite.id,
        ranking_id=new_id("rank"),
        evidence_sha256=standing.fingerprint(settings),
        now=now,
        rng=np.random.default_rng(int(sha256_text(" ".join(names))[:8], 16)),
    )


def keep(tx: Transaction, *, ranking: Ranking, settings: RankingSettings, actor: str) -> Ranking:
    """Save it; `StaleWrite` where something changed while it was made: the next tick ranks again."""
    standing = load(tx)
    if standing is None or standing.fingerprint(settings) != ranking.evidence_sha256:
        raise StaleWrite(f"{ranking.id} was made of what has changed since.")
    reason = f"best: {ranking.entries[0].checkpoint_id}" if ranking.entries else ranking.note
    tx.add(ranking, actor=actor, reason=reason)
    return ranking
