"""Door of the ranking: accepted checkpoints of the active suite, best first."""

from __future__ import annotations

from registry.messages import RankingRequest
from registry.records import Ranking
from tasks.door import door
from workers import projections, standings
from workers.context import Context
from workers.pipeline import owed


@door("ranking.update")
def update(_request: RankingRequest, context: Context) -> Ranking | None:
    """Rank; nothing where the newest ranking was made of the very same evidence."""
    settings = context.settings.ranking
    with context.registry.reading() as tx:
        standing = standings.load(tx)
        if standing is None or standing.is_ranked(settings):
            return standing.ranking if standing else None
        found = standings.candidates(tx, standing=standing)
    ranking = standings.rank_all(found, standing=standing, settings=settings, now=context.registry.clock())
    with context.registry.transaction() as tx:
        kept = standings.keep(tx, ranking=ranking, settings=settings, actor="control")
        messages = owed(tx, settings=context.settings)
    context.ring(messages)
    projections.refresh(context.registry, settings=context.settings)
    return kept
