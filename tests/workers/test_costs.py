"""How often the registry is asked on the way from a request to a trainer: what a job waits for."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from config.settings import Settings
from registry.messages import TrainingSubmission
from registry.store import Registry
from registry.testing import make_checkpoint
from workers import admission
from workers.app import app
from workers.context import Context
from workers.runner import claim
from workers.submission import submit

NUM_TO_SUBMIT, NUM_TO_START = 11, 17


@pytest.fixture
def asked(registry: Registry) -> Iterator[list[str]]:
    """What SQLite is told, beginnings and ends of transactions among it."""
    statements: list[str] = []

    def note(driver: Any, *_rest: object) -> None:
        driver.set_trace_callback(statements.append)

    event.listen(registry.engine, "checkout", note)
    yield statements
    event.remove(registry.engine, "checkout", note)


def test_a_job_is_submitted_and_begun_with_few_questions(
    registry: Registry, settings: Settings, asked: list[str]
) -> None:
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
    rows = settings.paths.inbox / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    context = Context(settings=settings, registry=registry, celery=app)
    submit(TrainingSubmission(dataset=str(rows)), settings=settings, registry=registry)
    asked.clear()
    again = TrainingSubmission(dataset=str(rows), force=True)
    submit(again, settings=settings, registry=registry)
    assert [line for line in asked if line.startswith("BEGIN")] == ["BEGIN IMMEDIATE"]
    assert len(asked) <= NUM_TO_SUBMIT
    asked.clear()
    with admission.to_train(context) as seen:
        claimed = claim(registry, settings=settings, holder="w", seen=seen)
    assert claimed is not None
    assert claimed.sources is not None
    begun = [line for line in asked if line.startswith(("BEGIN", "PRAGMA synchronous"))]
    assert begun == ["BEGIN", "PRAGMA synchronous=NORMAL", "BEGIN IMMEDIATE"]
    assert len(asked) <= NUM_TO_START
