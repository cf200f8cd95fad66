"""Previews, queue velocity and the error of past ETAs: from the registry, each unknown with its reason."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path

import pytest

from registry import queue
from registry.progress import EndPrediction
from registry.records import JobProgress, TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import START, ManualClock, add_queued_job, make_example, make_suite
from workers.surroundings import (
    NO_EVALUATION,
    NO_SUBMISSION,
    eta_errors,
    poisson_interval,
    read_surroundings,
)
from workers.testing_evaluations import add_evaluated


@pytest.fixture
def suite(registry: Registry, tmp_path: Path) -> Path:
    path = tmp_path / "suite.jsonl"
    rows = [{"id": f"row-{place:03}", "prompt": f"turn {place}", "completion": "abc"} for place in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with registry.transaction() as tx:
        tx.add(make_suite(path=str(path)), actor="test")
    return path


def evaluate(registry: Registry, name: str, *, answer: str, job_id: str | None = None) -> None:
    examples = [
        make_example(row_id=f"row-{place:03}", answer=answer, is_correct=answer == "abc")
        for place in range(40)
    ]
    with registry.transaction() as tx:
        add_evaluated(tx, name, examples=examples, job_id=job_id)


def succeed(registry: Registry, clock: ManualClock, job_id: str, *, seconds: float) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id=job_id, submitted_at=clock.now)
        assert queue.claim_next(tx, queues=tuple(Priority), holder="w", seconds=60)
    clock.advance(seconds)
    with registry.transaction() as tx:
        tx.transition(tx.get(TrainingJob, job_id), to=JobState.SUCCEEDED, actor="w", finished_at=tx.now)


def test_before_anything_happened_everything_is_unknown_with_its_reason(registry: Registry) -> None:
    found = read_surroundings(registry)
    assert (found.preview, found.preview_unknown_because) == (None, NO_EVALUATION)
    assert (found.velocity, found.velocity_unknown_because) == (None, NO_SUBMISSION)
    assert found.eta_errors == ()


def test_a_preview_is_an_answer_of_the_newest_evaluation_beside_the_golden_one(
    registry: Registry, suite: Path, clock: ManualClock
) -> None:
    evaluate(registry, "one", answer="cba")
    clock.advance(90)
    found = read_surroundings(registry).preview
    assert found is not None
    assert (found.golden_answer, found.reply, found.is_correct) == ("abc", "cba", False)
    assert found.prompt.startswith("turn ")
    assert (found.checkpoint_id, found.age_seconds) == ("one", 90)


def test_previews_go_round_the_same_few_prompts(registry: Registry, suite: Path, clock: ManualClock) -> None:
    evaluate(registry, "one", answer="abc")
    prompts = []
    for _ in range(16):
        clock.advance(10)
        found = read_surroundings(registry).preview
        assert found is not None
        prompts.append(found.prompt)
    assert prompts[:8] == prompts[8:]
    assert len(set(prompts)) == 8


def test_a_job_is_previewed_by_its_own_checkpoint_where_one_was_evaluated(
    registry: Registry, suite: Path
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    evaluate(registry, "mine", answer="abc", job_id="job-aaaaaa")
    evaluate(registry, "newer", answer="abc")
    own = read_surroundings(registry, job_id="job-aaaaaa").preview
    assert own is not None
    assert (own.checkpoint_id, own.job_id) == ("mine", "job-aaaaaa")
    assert read_surroundings(registry, job_id="job-other").preview is not None


def test_a_suite_that_is_gone_is_the_reason_of_an_unknown_preview(registry: Registry, suite: Path) -> None:
    evaluate(registry, "one", answer="abc")
    suite.unlink()
    found = read_surroundings(registry)
    assert found.preview is None
    assert "suite.jsonl cannot be read" in found.preview_unknown_because


def test_velocity_counts_jobs_and_rows_of_the_last_hours_and_forgets_older_ones(
    registry: Registry, clock: ManualClock
) -> None:
    for number in range(3):
        succeed(registry, clock, f"job-{number}", seconds=600)
    found = read_surroundings(registry).velocity
    assert found is not None
    assert (found.num_jobs, found.num_rows, found.hours) == (3, 30, 0.5)
    assert (found.jobs_per_hour, found.rows_per_hour) == (6, 60)
    assert found.jobs_per_hour_low < 6 < found.jobs_per_hour_high
    clock.advance(6 * 3600 + 1)
    later = read_surroundings(registry).velocity
    assert later is not None
    assert (later.num_jobs, later.jobs_per_hour, later.hours) == (0, 0, 6)
    assert later.jobs_per_hour_high > 0


def test_the_interval_of_a_count_holds_its_mean_in_about_95_percent_of_draws() -> None:
    dice, inside = random.Random(5), 0
    for _ in range(2000):
        count = sum(dice.random() < 0.01 for _ in range(600))
        low, high = poisson_interval(count)
        inside += low <= 6.0 <= high
    assert 0.93 <= inside / 2000 <= 0.98


def prediction(share: float, seconds: float, *, half: float | None = None) -> EndPrediction:
    low, high = (None, None) if half is None else (seconds - half, seconds + half)
    return EndPrediction(
        share=share, step=1, seconds=seconds, low_seconds=low, high_seconds=high, made_at=START
    )


def test_the_error_of_past_etas_is_relative_to_the_time_that_was_left() -> None:
    said = [
        (prediction(0.5, 110, half=20), 100.0),
        (prediction(0.5, 90, half=5), 100.0),
        (prediction(0.5, 130), 100.0),
        (prediction(0.1, 300), 200.0),
    ]
    tenth, half = eta_errors(said)
    assert (tenth.share, tenth.num_jobs, tenth.median_relative_error) == (0.1, 1, 0.5)
    assert (half.num_jobs, half.num_with_interval, half.num_inside) == (3, 2, 1)
    assert half.median_relative_error == pytest.approx(0.1)
    assert half.median_bias == pytest.approx(0.1)


def test_predictions_of_jobs_that_succeeded_are_compared_with_their_end(
    registry: Registry, clock: ManualClock
) -> None:
    succeed(registry, clock, "job-0", seconds=100)
    made = prediction(0.5, 60).changed(made_at=clock.now - timedelta(seconds=50))
    with registry.transaction() as tx:
        kept = JobProgress(
            step=9, num_steps=9, epoch=1, num_tokens=1, predictions=(made,), reported_at=clock.now
        )
        tx.update(tx.get(TrainingJob, "job-0"), progress=kept)
    (found,) = read_surroundings(registry).eta_errors
    assert found.median_relative_error == pytest.approx(0.2)
