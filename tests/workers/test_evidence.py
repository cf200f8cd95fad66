import json
from pathlib import Path

import pytest
from pyarrow import parquet

from registry.store import Registry
from registry.testing import make_suite
from workers import evidence
from workers.testing_evaluations import add_evaluated, right_on


@pytest.fixture
def evaluated(registry: Registry) -> Registry:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        add_evaluated(tx, "a", examples=right_on(30))
    return registry


def test_an_evaluation_is_a_file_with_a_row_an_example(evaluated: Registry, tmp_path: Path) -> None:
    (path,) = evidence.refresh(evaluated, directory=tmp_path / "evaluations")
    table = parquet.read_table(path)
    assert table.num_rows == 40
    assert sum(table["is_correct"].to_pylist()) == 30
    assert [example.model_dump(mode="json") for example in right_on(30)] == table.to_pylist()
    asked = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (asked["checkpoint_id"], asked["suite_id"]) == ("a", "suite-1")
    assert json.loads(asked["settings"])["temperature"] == 0


def test_what_is_there_is_left_and_what_is_missing_comes_back(evaluated: Registry, tmp_path: Path) -> None:
    (path,) = evidence.refresh(evaluated, directory=tmp_path)
    assert evidence.refresh(evaluated, directory=tmp_path) == []
    path.unlink()
    assert evidence.refresh(evaluated, directory=tmp_path) == [path]


def test_files_of_a_broken_and_of_a_whole_checkpoint_are_read_as_one_table(
    evaluated: Registry, tmp_path: Path
) -> None:
    unknown = [
        one.changed(loss=None, confidence=None, is_correct=False, finish_reason="error", problem="NaN")
        for one in right_on(0)
    ]
    tagged = [one.changed(tags=("short",), tempered_logprobs=(-0.5,)) for one in right_on(20)]
    with evaluated.transaction() as tx:
        add_evaluated(tx, "broken", examples=unknown)
        add_evaluated(tx, "tagged", examples=tagged)
    paths = evidence.refresh(evaluated, directory=tmp_path / "evaluations")
    assert len({parquet.read_schema(path).remove_metadata() for path in paths}) == 1
    table = parquet.read_table(tmp_path / "evaluations")
    assert table.num_rows == 120
    assert table["loss"].null_count == 40
