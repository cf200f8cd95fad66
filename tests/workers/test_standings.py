"""A ranking is made of what was loaded, and kept only if that is still so."""

import pytest

from config.settings import RankingSettings, Settings
from intelligence.summary import summarise
from registry import judgements
from registry.errors import StaleWrite
from registry.messages import EvaluationAnswer
from registry.records import Checkpoint, Ranking
from registry.states import CheckpointState
from registry.store import Registry, Transaction
from registry.testing import START, make_checkpoint, make_evaluation, make_example, make_suite
from workers import standings
from workers.standings import Standing

NAMES = ("a", "b", "c")


@pytest.fixture
def how(settings: Settings) -> RankingSettings:
    return settings.ranking


@pytest.fixture
def evaluated(registry: Registry) -> Registry:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for place, name in enumerate(NAMES):
            tx.add(make_checkpoint(id=name, state=CheckpointState.ACCEPTED), actor="test")
            answer(tx, name=name, num_correct=10 * (place + 1))
    return registry


def answer(tx: Transaction, *, name: str, num_correct: int) -> None:
    examples = tuple(make_example(row_id=f"row-{n}", is_correct=n < num_correct) for n in range(40))
    tx.add(make_evaluation(id=f"eval-{name}", checkpoint_id=name), actor="test")
    reply = EvaluationAnswer(
        evaluation_id=f"eval-{name}",
        checkpoint_id=name,
        suite_id="suite-1",
        examples=examples,
        host="intel",
        started_at=START,
        finished_at=START,
    )
    judgements.record_answer(tx, answer=reply, summary=summarise(examples), actor="test")


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
