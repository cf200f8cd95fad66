"""A suite is held against all training data, also against what is submitted while it is built."""

import json
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from registry.errors import DatasetError
from registry.messages import SuiteBuild
from registry.records import Dataset, Suite
from registry.store import Registry
from workers import intake
from workers.imports import import_suite


def write_rows(path: Path, *, first: int, last: int) -> Path:
    rows = [{"prompt": f"spell {number}", "completion": str(number)} for number in range(first, last)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def learnt(settings: Settings, registry: Registry) -> Dataset:
    path = write_rows(settings.paths.inbox / "learnt.jsonl", first=0, last=3)
    return intake.take_dataset(path, settings=settings, now=registry.clock())


@pytest.fixture
def asked(settings: Settings) -> Path:
    return write_rows(settings.paths.inbox / "asked.jsonl", first=2, last=60)


def test_a_suite_that_training_data_gives_away_is_not_built(
    settings: Settings, registry: Registry, learnt: Dataset, asked: Path
) -> None:
    with registry.transaction() as tx:
        tx.add(learnt, actor="test")
    with pytest.raises(DatasetError, match=r"learnt: 1 rows are also in .*leave these questions out"):
        import_suite(SuiteBuild(path=str(asked)), settings=settings, registry=registry)
    with registry.reading() as tx:
        assert tx.find(Suite) == []


def test_data_that_is_submitted_while_a_suite_is_checked_is_looked_at_too(
    settings: Settings, registry: Registry, learnt: Dataset, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = registry.transaction

    def submit_first(**options: Any) -> Any:
        monkeypatch.setattr(registry, "transaction", begin)
        with begin() as tx:
            tx.add(learnt, actor="test")
        return begin(**options)

    monkeypatch.setattr(registry, "transaction", submit_first)
    with pytest.raises(DatasetError, match="learnt: 1 rows are also in the validation suite"):
        import_suite(SuiteBuild(path=str(asked)), settings=settings, registry=registry)
    with registry.reading() as tx:
        assert tx.find(Suite) == []
