"""Whether the next piece of work may begin, on the real main memory of this machine."""

from datetime import timedelta
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from registry import hosts
from registry.messages import ArtifactReference, EvaluationRequest
from registry.records import Event, GenerationSettings
from registry.store import Registry
from registry.testing import SHA, add_queued_job, make_checkpoint
from workers import admission
from workers.app import app
from workers.context import Context
from workers.runner import claim

FULL = 10**15  # bytes: more than any machine has


def context_of(registry: Registry, *, home: Path, reserve_bytes: int) -> Context:
    settings: Settings = load_settings(
        home=home,
        guard={"reserve_bytes": reserve_bytes},
        training={"device": "cpu"},
    )
    return Context(settings=settings, registry=registry, celery=app)


@pytest.fixture
def home(settings: Settings, registry: Registry) -> Path:
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
    return settings.home


def test_a_job_for_which_there_is_no_memory_waits_with_its_numbers_until_there_is(
    registry: Registry, home: Path
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    full = context_of(registry, home=home, reserve_bytes=FULL)
    for _ in range(2):
        with admission.to_train(full) as seen:
            assert seen is None
    with registry.reading() as tx:
        assert "job-aaaaaa waits: cpu has" in hosts.standstill(tx)
        assert "1000000.0 GB are needed" in hosts.standstill(tx)
        assert len(tx.find(Event, subject_id=full.host)) == 1  # said once, not at every bell
    with admission.to_train(context_of(registry, home=home, reserve_bytes=0)) as seen:
        assert seen is not None
        assert seen.job.id == "job-aaaaaa"
    with registry.reading() as tx:
        assert hosts.standstill(tx) == ""


def test_where_nothing_waits_nothing_is_in_the_way(registry: Registry, home: Path) -> None:
    with admission.to_train(context_of(registry, home=home, reserve_bytes=FULL)) as seen:
        assert seen is None
    with registry.reading() as tx:
        assert hosts.standstill(tx) == ""


def test_who_is_rung_before_the_row_is_written_finds_it_all_the_same(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_seconds: float) -> None:
        with registry.transaction() as tx:
            add_queued_job(tx)

    monkeypatch.setattr(admission.time, "sleep", write)
    context = context_of(registry, home=home, reserve_bytes=0)
    with admission.to_train(context, rung_for="job-aaaaaa") as seen:
        assert seen is not None
        assert seen.job.id == "job-aaaaaa"


def test_a_row_that_never_comes_is_not_waited_for_long(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(admission.time, "monotonic", lambda: next(now) * admission.ROW_WAIT_SECONDS / 3)
    monkeypatch.setattr(admission.time, "sleep", lambda _seconds: None)
    context = context_of(registry, home=home, reserve_bytes=0)
    with admission.to_train(context, rung_for="job-nowhere") as seen:
        assert seen is None
    assert 3 <= next(now) <= 6


def test_a_job_that_is_written_and_may_not_begin_is_not_waited_for(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission.time, "sleep", lambda _seconds: pytest.fail("waited"))
    context = context_of(registry, home=home, reserve_bytes=0)
    with registry.transaction() as tx:
        add_queued_job(tx, not_before_at=registry.clock() + timedelta(hours=1))
    with admission.to_train(context, rung_for="job-aaaaaa") as seen:
        assert seen is None


def test_only_the_job_that_the_device_was_judged_for_is_claimed(registry: Registry, home: Path) -> None:
    context = context_of(registry, home=home, reserve_bytes=0)
    with registry.transaction() as tx:
        add_queued_job(tx)
    with admission.to_train(context) as seen:
        with registry.transaction() as tx:
            add_queued_job(tx, id="job-urgent", priority="high")
        assert claim(registry, settings=context.settings, holder="w", seen=seen) is None
    with admission.to_train(context) as seen:
        claimed = claim(registry, settings=context.settings, holder="w", seen=seen)
    assert claimed is not None
    assert claimed[0].id == "job-urgent"


@pytest.mark.parametrize(("reserve_bytes", "is_free"), [(FULL, False), (0, True)])
def test_an_evaluation_is_told_why_it_cannot_begin(
    registry: Registry, home: Path, reserve_bytes: int, is_free: bool
) -> None:
    request = EvaluationRequest(
        evaluation_id="eval-1",
        checkpoint_id="base-aaaaaa",
        model=ArtifactReference(path="nowhere", sha256=SHA),
        suite_id="suite-1",
        suite=ArtifactReference(path="suite.jsonl", sha256=SHA),
        settings=GenerationSettings(),
        device="cpu",
    )
    context = context_of(registry, home=home, reserve_bytes=reserve_bytes)
    with admission.to_evaluate(context, request) as obstacle:
        assert (obstacle == "") is is_free
