import json
from pathlib import Path

import pytest

from intelligence.errors import IntelligenceError, UnknownScorer
from registry import judgements
from registry.errors import DatasetError, NotFound
from registry.files import sha256_file
from registry.rows import read_rows
from registry.store import Registry
from registry.testing import make_example, make_suite
from workers.rejudging import rejudge
from workers.testing_evaluations import add_evaluated

REPLIES = {"r1": ("1000", "1,000", False), "r2": ("7", "7", True), "r3": ("5", "6", False)}


@pytest.fixture
def suite_path(tmp_path: Path) -> Path:
    path = tmp_path / "suite.jsonl"
    rows = [
        {"prompt": name, "completion": expected, "id": name, "scorer": "numeric"}
        for name, (expected, _, _) in REPLIES.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluated(registry: Registry, suite_path: Path) -> Registry:
    """A checkpoint whose replies were judged as texts."""
    examples = [
        make_example(row_id=name, expected=expected, answer=answer, is_correct=is_correct)
        for name, (expected, answer, is_correct) in REPLIES.items()
    ]
    suite = make_suite(path=str(suite_path), content_sha256=sha256_file(suite_path))
    with registry.transaction() as tx:
        tx.add(suite, actor="test")
        add_evaluated(tx, "ckpt-1", examples=examples)
    return registry


def test_stored_replies_are_judged_by_the_suites_scorers_and_nothing_changes(evaluated: Registry) -> None:
    found = rejudge(evaluated, checkpoint_id="ckpt-1")
    assert [(one.row_id, one.is_correct, one.scorer) for one in found.differing] == [("r1", True, "numeric")]
    assert found.before.accuracy.value == pytest.approx(1 / 3)
    assert found.now.accuracy.value == pytest.approx(2 / 3)
    with evaluated.reading() as tx:
        kept = judgements.examples_of(tx, evaluation_id=found.evaluation_id)
    assert [one.is_correct for one in kept] == [False, True, False]


def test_another_scorer_may_be_tried_out(evaluated: Registry) -> None:
    assert rejudge(evaluated, checkpoint_id="ckpt-1", scorer="exact").differing == ()
    with pytest.raises(UnknownScorer, match="no scorer 'best'"):
        rejudge(evaluated, checkpoint_id="ckpt-1", scorer="best")


def test_a_suite_whose_file_was_changed_judges_nothing(evaluated: Registry, suite_path: Path) -> None:
    assert len(list(read_rows(suite_path))) == 3
    suite_path.write_text(suite_path.read_text().replace("1000", "1001"))
    with pytest.raises(DatasetError, match="missing or was changed"):
        rejudge(evaluated, checkpoint_id="ckpt-1")


def test_what_was_not_evaluated_cannot_be_judged(registry: Registry, evaluated: Registry) -> None:
    with pytest.raises(NotFound, match="ckpt-2 has no answered evaluation"):
        rejudge(evaluated, checkpoint_id="ckpt-2")


def test_without_a_suite_there_is_nothing_to_judge_by(registry: Registry) -> None:
    with pytest.raises(NotFound, match="No suite is active"):
        rejudge(registry, checkpoint_id="ckpt-1")


def test_an_example_without_its_row_is_an_error(evaluated: Registry, suite_path: Path) -> None:
    lines = suite_path.read_text().splitlines()
    suite_path.write_text("\n".join(lines[:2]) + "\n")
    with evaluated.transaction() as tx:
        suite = tx.get(type(make_suite()), "suite-1")
        tx.update(suite, content_sha256=sha256_file(suite_path))
    with pytest.raises(IntelligenceError, match="'r3' is no row of the suite"):
        rejudge(evaluated, checkpoint_id="ckpt-1")
