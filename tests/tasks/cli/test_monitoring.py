"""What a person reads of a run: each number with its error and n, and of what is unknown the reason."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from registry import queue
from registry.progress import EtaError, QueueVelocity, TrainingAlert
from registry.records import Estimate, JobProgress, TrainingJob
from registry.states import Priority
from registry.store import Registry
from registry.testing import START, add_queued_job
from tasks.cli.main import cli
from tasks.cli.monitoring import eta_error_line, velocity_line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, num_samples=64)


@pytest.fixture
def overfitting(registry: Registry) -> Registry:
    measured = {
        "step": 5,
        "validation_loss": estimate(2.0),
        "training_loss": estimate(1.4),
        "gap": estimate(0.6),
        "gap_state": "overfitting",
        "validation_accuracy": estimate(0.5),
        "training_accuracy": estimate(0.7),
        "num_validation_tokens": 99,
        "num_training_tokens": 99,
        "duration_seconds": 0.1,
    }
    alert = TrainingAlert(kind="gap", message="too much", value=0.6, limit=0.3, since_step=5, raised_at=START)
    with registry.transaction() as tx:
        add_queued_job(tx)
        assert queue.claim_next(tx, queues=tuple(Priority), holder="w", seconds=60)
        progress = JobProgress(
            step=5,
            num_steps=10,
            epoch=0,
            num_tokens=500,
            micro_evaluation=measured,  # type: ignore[arg-type]
            alerts=(alert,),
            reported_at=tx.now,
        )
        tx.update(tx.get(TrainingJob, "job-aaaaaa"), progress=progress)
    return registry


def test_a_job_is_shown_with_gap_accuracy_alerts_and_what_is_unknown(overfitting: Registry) -> None:
    shown = run("job", "show", "job-aaaaaa").stdout
    assert "Gap 0.600 (0.500 to 0.700): overfitting; validation loss 2.000" in shown
    assert "n = 64 rows, at step 5" in shown
    assert "Token accuracy 70% (60% to 80%, n = 64 rows) on rows it has learnt" in shown
    assert "ALERT gap since step 5: too much" in shown
    assert "Preview: unknown (no checkpoint was evaluated yet)" in shown


def test_a_job_of_which_nothing_was_reported_says_so(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    assert "Gap: unknown (the trainer has not reported yet)" in run("job", "show", "job-aaaaaa").stdout


def test_velocity_and_past_etas_carry_their_n() -> None:
    velocity = QueueVelocity(
        hours=2.0,
        num_jobs=8,
        num_rows=800,
        jobs_per_hour=4.0,
        jobs_per_hour_low=1.7,
        jobs_per_hour_high=7.9,
        rows_per_hour=400,
    )
    line = velocity_line(velocity, reason="")
    assert line == "Queue velocity: 4.0 jobs/h (1.7 to 7.9, n = 8), 400 rows/h over the last 2.0 h"
    assert velocity_line(None, reason="no job was ever submitted").endswith(
        "unknown (no job was ever submitted)"
    )
    error = EtaError(
        share=0.5,
        median_relative_error=0.06,
        median_bias=-0.02,
        num_jobs=12,
        num_with_interval=12,
        num_inside=11,
    )
    assert eta_error_line(error) == (
        "Past ETAs made at 50% of a run were off by 6% (median, n = 12; 2% too early); "
        "11 of 12 intervals held the end"
    )
