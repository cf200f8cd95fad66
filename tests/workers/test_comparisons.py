import pytest

from config.settings import RankingSettings
from registry.errors import NotFound
from registry.store import Registry
from registry.testing import make_checkpoint, make_dataset, make_suite
from workers.comparisons import compare_checkpoints
from workers.testing_evaluations import add_evaluated, right_on

HOW = RankingSettings(num_resamples=200)


@pytest.fixture
def family(registry: Registry) -> Registry:
    """From the base come `first` and, from that, `second`; `stray` has no parent."""
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        for name in ("ds-1", "ds-2"):
            tx.add(make_dataset(id=name, name=name, content_sha256=name), actor="test")
        add_evaluated(tx, "base", examples=right_on(5), origin="base")
        add_evaluated(tx, "first", examples=right_on(20), parent_checkpoint_id="base", dataset_id="ds-1")
        add_evaluated(tx, "second", examples=right_on(30), parent_checkpoint_id="first", dataset_id="ds-2")
        add_evaluated(tx, "stray", examples=right_on(30))
    return registry


def test_a_descendant_is_told_by_what_it_was_trained_on_since(family: Registry) -> None:
    comparison, descent = compare_checkpoints(family, left_id="base", right_id="second", settings=HOW)
    assert comparison.accuracy.difference.value == pytest.approx(25 / 40)
    assert descent.common_checkpoint_id == "base"
    assert (descent.left_datasets, descent.right_datasets) == ((), ("ds-1", "ds-2"))


def test_strangers_have_no_common_ancestor(family: Registry) -> None:
    _, descent = compare_checkpoints(family, left_id="stray", right_id="first", settings=HOW)
    assert descent.common_checkpoint_id is None
    assert (descent.left_datasets, descent.right_datasets) == ((), ("ds-1",))


def test_the_same_question_gets_the_same_answer(family: Registry) -> None:
    first, second = (
        compare_checkpoints(family, left_id="first", right_id="second", settings=HOW) for _ in range(2)
    )
    assert first == second


def test_what_is_missing_is_named(family: Registry) -> None:
    with family.transaction() as tx:
        tx.add(make_checkpoint(id="new"), actor="test")
    with pytest.raises(NotFound, match="new was not evaluated on validation"):
        compare_checkpoints(family, left_id="base", right_id="new", settings=HOW)
    with pytest.raises(NotFound, match="nobody"):
        compare_checkpoints(family, left_id="base", right_id="nobody", settings=HOW)


def test_without_a_suite_there_is_nothing_to_compare_on(registry: Registry) -> None:
    with pytest.raises(NotFound, match="No suite is active"):
        compare_checkpoints(registry, left_id="a", right_id="b", settings=HOW)
