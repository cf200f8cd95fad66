"""A ranking is made of what was loaded, and kept only if that is still so."""

import pytest

from config.settings import RankingSettings, Settings
from registry.errors import StaleWrite
from registry.records import Checkpoint, Ranking
from registry.states import CheckpointState
from registry.store import Registry
from registry.testing import START, make_suite
from workers import standings
from workers.standings import Standing
from workers.testing_evaluations import add_evaluated, right_on

NAMES = ("a", "b", "c")


@pytest.fixture
def how(settings: Settings) -> RankingSettings:
    return settings.ranking


@pytest.fixture
def evaluated(registry: Registry) -> Registry:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for place, name in enumerate(NAMES):
            add_evaluated(tx, name, examples=right_on(10 * (place + 1)))
    return registry


def load(registry: Registry) -> Standing:
    with registry.reading() as tx:
        standing = standings.load(tx)
    assert standing is not None
    return standing


def rank(registry: Registry, how: RankingSettings) -> Ranking:
    standing = load(registry)
    with registry.reading() as tx:
        found = standings.candidates(tx, standing=standing)
    return standings.rank_all(found, standing=standing, settings=how, now=START)


def keep(registry: Registry, ranking: Ranking, how: RankingSettings) -> None:
    with registry.transaction() as tx:
        standings.keep(tx, ranking=ranking, settings=how, actor="test")


def test_a_kept_ranking_says_that_its_evidence_is_ranked(evaluated: Registry, how: RankingSettings) -> None:
    assert not load(evaluated).is_ranked(how)
    keep(evaluated, rank(evaluated, how), how)
    assert load(evaluated).is_ranked(how)


def test_the_best_comes_first_and_the_same_evidence_ranks_the_same(
    evaluated: Registry, how: RankingSettings
) -> None:
    first, second = rank(evaluated, how), rank(evaluated, how)
    assert [entry.checkpoint_id for entry in first.entries] == ["c", "b", "a"]
    assert first.entries == second.entries


def test_other_weights_are_other_evidence(evaluated: Registry, how: RankingSettings) -> None:
    keep(evaluated, rank(evaluated, how), how)
    assert not load(evaluated).is_ranked(how.model_copy(update={"min_checkpoints": 2}))


def test_a_ranking_is_discarded_where_a_checkpoint_was_quarantined_meanwhile(
    evaluated: Registry, how: RankingSettings
) -> None:
    ranking = rank(evaluated, how)
    with evaluated.transaction() as tx:
        tx.transition(tx.get(Checkpoint, "c"), to=CheckpointState.QUARANTINED, actor="test", reason="test")
    with pytest.raises(StaleWrite, match="changed since"):
        keep(evaluated, ranking, how)


def test_without_an_active_suite_nothing_stands(registry: Registry) -> None:
    with registry.reading() as tx:
        assert standings.load(tx) is None
