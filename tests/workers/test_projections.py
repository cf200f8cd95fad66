"""What the status files say, and when they stop saying it."""

import json

from config.settings import Settings
from registry import queue
from registry.states import Priority
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job
from workers import projections


def status(registry: Registry, settings: Settings) -> dict[str, object]:
    projections.refresh(registry, settings=settings)
    found: dict[str, object] = json.loads((settings.paths.status / "training_status.json").read_text())
    return found


def start_job(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        assert queue.claim_next(tx, queues=tuple(Priority), holder="worker", seconds=60)


def test_nothing_to_train_is_idle(registry: Registry, settings: Settings) -> None:
    assert status(registry, settings)["status"] == "idle"


def test_a_job_whose_worker_reports_is_training(registry: Registry, settings: Settings) -> None:
    start_job(registry)
    assert status(registry, settings)["status"] == "training"


def test_a_job_whose_worker_fell_silent_reads_crashed_before_a_minute_is_over(
    registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    start_job(registry)
    clock.advance(60 - settings.schedule.sweep_seconds)  # the last sweep within the minute
    found = status(registry, settings)
    assert found["status"] == "crashed"
    assert found["reason"] == "its worker stopped reporting"


def test_a_job_that_was_put_back_after_a_crash_reads_crashed_with_the_cause(
    registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    start_job(registry)
    clock.advance(61)
    with registry.transaction() as tx:
        queue.requeue_abandoned(tx, actor="sweep")
    found = status(registry, settings)
    assert found["status"] == "crashed"
    assert "stopped renewing the lease" in str(found["reason"])


def test_every_status_file_is_written_even_when_there_is_nothing_to_say(
    registry: Registry, settings: Settings
) -> None:
    status(registry, settings)
    names = {path.stem for path in settings.paths.status.glob("*.json")}
    assert names == {"training_status", "regression_monitoring", "model_comparisons"}
    note = json.loads((settings.paths.status / "model_comparisons.json").read_text())["note"]
    assert note == "no suite is active"
