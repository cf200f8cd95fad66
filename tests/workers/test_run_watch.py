"""What a runner keeps of its trainer's reports: time left, predictions, device, and alerts as events."""

from __future__ import annotations

from typing import Any

import pytest

from registry.progress import AlertKind, TrainingAlert
from registry.records import Event, JobProgress
from registry.store import Registry
from registry.testing import START, ManualClock, add_queued_job
from trainer.messages import Progress
from workers.run_watch import RunWatch
from workers.testing import FakeDevice, progress


@pytest.fixture
def watch(registry: Registry) -> RunWatch:
    with registry.transaction() as tx:
        job = add_queued_job(tx)
    return RunWatch(job, registry=registry, device=FakeDevice())


def alert(kind: AlertKind = "gap", **fields: Any) -> TrainingAlert:
    common = {"kind": kind, "message": "0.4 of 0.3", "value": 0.4, "limit": 0.3, "since_step": 5}
    return TrainingAlert.model_validate(common | {"raised_at": START} | fields)


def run(watch: RunWatch, clock: ManualClock, *, steps: range, seconds: float = 2.0) -> JobProgress:
    for step in steps:
        clock.advance(seconds)
        found = watch.take(progress(step, num_steps=100))
    return found


def events_of(registry: Registry, watch: RunWatch) -> list[tuple[str, str]]:
    with registry.transaction() as tx:
        watch.write_events(tx, actor="w")
        watch.forget_events()
        found = tx.find(Event, kind="TrainingAlert", order_by="id")
    return [(event.after, event.reason) for event in found]


def test_the_time_left_is_measured_from_what_the_runner_saw(watch: RunWatch, clock: ManualClock) -> None:
    assert run(watch, clock, steps=range(1, 2)).left is None
    left = run(watch, clock, steps=range(2, 11)).left
    assert left is not None
    assert left.seconds == pytest.approx(180)
    assert left.variance == pytest.approx(0)


def test_the_end_is_predicted_once_at_a_tenth_a_half_and_nine_tenths(
    watch: RunWatch, clock: ManualClock
) -> None:
    found = run(watch, clock, steps=range(1, 101)).predictions
    assert [(one.share, one.step) for one in found] == [(0.1, 10), (0.5, 50), (0.9, 90)]
    assert [one.seconds for one in found] == pytest.approx([180, 100, 20])


def test_an_attempt_that_goes_on_late_predicts_only_what_it_passes(
    watch: RunWatch, clock: ManualClock
) -> None:
    found = run(watch, clock, steps=range(65, 101)).predictions
    assert [one.share for one in found] == [0.9]


def test_a_report_brings_the_device_and_the_trainers_memory(watch: RunWatch) -> None:
    found = watch.take(progress(1).changed(resident_bytes=5_000)).device
    assert found is not None
    assert (found.name, found.utilisation, found.temperature_celsius) == ("gpu-0", 0.5, 40.0)
    assert (found.trainer_memory_bytes, found.memory_total_bytes) == (5_000, 24 * 10**9)
    assert found.unknown_because == ""


def test_a_report_of_a_job_on_several_cards_says_that_it_reads_the_first(watch: RunWatch) -> None:
    several = RunWatch(watch.job, registry=watch.registry, device=FakeDevice(), num_devices=2)
    found = several.take(progress(1)).device
    assert found is not None
    assert found.name == "gpu-0, the first of 2"


def test_an_alert_is_an_event_when_it_comes_and_when_it_goes_and_once_each(
    registry: Registry, watch: RunWatch
) -> None:
    held = Progress.model_validate(progress(1).model_dump() | {"alerts": (alert(),)})
    for message in (progress(1), held, held):
        watch.take(message)
    assert events_of(registry, watch) == [("raised", "gap: 0.4 of 0.3")]
    assert events_of(registry, watch) == [("raised", "gap: 0.4 of 0.3")]
    watch.take(progress(2))
    assert [after for after, _ in events_of(registry, watch)] == ["raised", "cleared"]


def test_what_an_earlier_attempt_left_open_is_cleared_by_the_next_one(
    registry: Registry, watch: RunWatch
) -> None:
    kept = watch.take(Progress.model_validate(progress(1).model_dump() | {"alerts": (alert(),)}))
    events_of(registry, watch)
    later = RunWatch(watch.job.changed(progress=kept), registry=registry, device=FakeDevice())
    later.take(progress(2))
    assert events_of(registry, later)[-1][0] == "cleared"


def test_a_row_of_a_time_when_alerts_were_sentences_is_still_read() -> None:
    kept = progress(1).model_dump(include=set(JobProgress.model_fields))
    found = JobProgress.model_validate(kept | {"alerts": ["59 tokens/s is 59%"], "reported_at": START})
    assert found.alerts == ()
