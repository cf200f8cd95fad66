"""Door of the ranking: accepted checkpoints of the active suite, best first."""

from __future__ import annotations

from intelligence.ranking import rank
from registry import lineage
from registry.ids import new_id
from registry.messages import RankingRequest
from registry.records import Checkpoint, EvaluationSummary, Ranking, Suite
from registry.states import CheckpointState
from registry.store import Transaction
from tasks.door import door
from workers import projections
from workers.context import Context
from workers.pipeline import owed


@door("ranking.update")
def update(_request: RankingRequest, context: Context) -> Ranking | None:
    """Rank; keep the ranking only where it says something else than the one before."""
    ranking_settings = context.settings.ranking
    with context.registry.transaction() as tx:
        suite = lineage.active_suite(tx)
        if suite is None:
            return None
        active = lineage.active_deployment(tx)
        ranking = rank(
            _candidates(tx, suite=suite),
            weights=ranking_settings.weights,
            min_checkpoints=ranking_settings.min_checkpoints,
            served_checkpoint_id=active.checkpoint_id if active else None,
            suite_id=suite.id,
            ranking_id=new_id("rank"),
            now=tx.now,
        )
        kept = _keep_if_news(tx, ranking=ranking)
        messages = owed(tx, settings=context.settings)
    context.ring(messages)
    projections.refresh(context.registry, settings=context.settings)
    return kept


def _candidates(tx: Transaction, *, suite: Suite) -> list[tuple[Checkpoint, EvaluationSummary]]:
    found = []
    for checkpoint in tx.find(Checkpoint, state=CheckpointState.ACCEPTED):
        evaluation = lineage.answered_evaluation(tx, checkpoint_id=checkpoint.id, suite_id=suite.id)
        if evaluation is not None and evaluation.summary is not None:
            found.append((checkpoint, evaluation.summary))
    return found


def _keep_if_news(tx: Transaction, *, ranking: Ranking) -> Ranking:
    before = lineage.newest_ranking(tx, suite_id=ranking.suite_id)
    if before is not None and (before.entries, before.num_eligible, before.weights) == (
        ranking.entries,
        ranking.num_eligible,
        ranking.weights,
    ):
        return before
    best = ranking.entries[0].checkpoint_id if ranking.entries else ranking.note
    tx.add(ranking, actor="control", reason=f"best: {best}")
    return ranking
