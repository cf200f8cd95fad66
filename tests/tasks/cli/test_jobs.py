"""Commands about jobs that only read: the queue with its forecast, a job, its watch."""

import json
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from registry import commands, queue
from registry.records import JobProgress, TrainingJob
from registry.states import ENDED_JOB_STATES, Command, JobState, Priority
from registry.store import Registry, utc_now
from registry.testing import add_queued_job
from tasks.cli.main import cli
from workers.errors import TaskFailed


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture
def line_of_three(registry: Registry) -> Registry:
    """One runs, two wait, and one succeeded before in 100 s for its ten rows."""
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-past")
        claim(tx)
    later = Registry(str(registry.engine.url), clock=lambda: utc_now() + timedelta(seconds=100))
    with later.transaction() as tx:
        job = tx.get(TrainingJob, "job-past")
        tx.transition(job, to=JobState.SUCCEEDED, actor="w", finished_at=tx.now)
        add_queued_job(tx, id="job-running")
        claim(tx)
        progress = JobProgress(
            step=5, num_steps=10, epoch=0, tokens_per_second=10, num_tokens=500, reported_at=tx.now
        )
        tx.update(tx.get(TrainingJob, "job-running"), progress=progress)
        add_queued_job(tx, id="job-first")
        add_queued_job(tx, id="job-second", priority=Priority.LOW)
    return registry


def claim(tx: Any) -> None:
    assert queue.claim_next(tx, queues=tuple(Priority), holder="w", seconds=60)


def test_the_queue_is_listed_with_places_and_expected_starts(line_of_three: Registry) -> None:
    lines = json.loads(run("queue", "list", "--json").stdout)
    assert [(line["id"], line["place"]) for line in lines] == [
        ("job-running", None),
        ("job-first", 1),
        ("job-second", 2),
    ]
    assert lines[0]["eta"]["seconds"] == pytest.approx(50)
    assert lines[1]["start"]["seconds"] == pytest.approx(50)
    assert lines[2]["start"]["seconds"] == pytest.approx(150, abs=1)
    assert lines[2]["start"]["low_seconds"] is None  # one past job shows no spread
    shown = run("queue", "list").stdout
    assert "error unknown" in shown
    assert "place" in shown


def test_a_paused_job_stands_behind_the_others_without_a_place(line_of_three: Registry) -> None:
    with line_of_three.transaction() as tx:
        commands.give(tx, job_id="job-first", command=Command.PAUSE, actor="test", reason="")
    lines = json.loads(run("queue", "list", "--json").stdout)
    assert [(line["id"], line["place"]) for line in lines][1:] == [("job-second", 1), ("job-first", None)]


def test_a_queue_of_which_nothing_is_known_says_unknown_and_why(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    shown = run("queue", "list").stdout
    assert "unknown" in shown
    assert "nothing runs" in " ".join(shown.split())
    (line,) = json.loads(run("queue", "list", "--json").stdout)
    assert (line["place"], line["start"]) == (1, None)


def test_a_job_is_shown_with_its_place(line_of_three: Registry) -> None:
    assert "place 2" in run("job", "show", "job-second").stdout
    assert "ETA 50 s (error unknown)" in run("job", "show", "job-running").stdout
    assert json.loads(run("job", "show", "job-first", "--json").stdout)["line"]["place"] == 1


@pytest.mark.parametrize("state", sorted(set(ENDED_JOB_STATES) - {JobState.SUCCEEDED}))
def test_a_watch_and_a_wait_end_with_an_error_unless_the_job_succeeded(
    registry: Registry, state: JobState
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        claim(tx)
        tx.transition(tx.get(TrainingJob, "job-aaaaaa"), to=state, actor="w", note="why it ended")
    for command in (("job", "show", "--watch"), ("job", "wait")):
        result = run(*command, "job-aaaaaa")
        assert isinstance(result.exception, TaskFailed)
        assert "why it ended" in str(result.exception)
        assert str(state) in result.stdout


def test_a_watch_of_a_job_that_succeeded_is_one_line_and_no_error(line_of_three: Registry) -> None:
    result = run("job", "show", "job-past", "--watch", "--json")
    assert result.exit_code == 0
    (line,) = [json.loads(text) for text in result.stdout.splitlines()]
    assert (line["id"], line["state"]) == ("job-past", "succeeded")
    assert run("job", "show", "job-past", "--watch").stdout.startswith("job-past succeeded")
    assert run("job", "wait", "job-past").exit_code == 0
    assert run("job", "wait", "job-past", "--json").stdout == result.stdout


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.STOPPED])
def test_what_was_not_learnt_of_its_data_is_shown_with_a_job(registry: Registry, state: JobState) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        claim(tx)
        tx.transition(tx.get(TrainingJob, "job-aaaaaa"), to=state, actor="w", note="6 rows [were] never used")
    assert "\n6 rows [were] never used\n" in run("job", "show", "job-aaaaaa").stdout


def test_what_a_stop_left_unused_stands_in_the_job_and_in_its_story(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        claim(tx)
        job = tx.get(TrainingJob, "job-aaaaaa")
        progress = JobProgress(
            step=4, num_steps=10, epoch=0, num_tokens=5, num_unused_rows=6, reported_at=tx.now
        )
        job = tx.update(tx.transition(job, to=JobState.PAUSED, actor="w"), progress=progress)
        commands.give(tx, job_id=job.id, command=Command.STOP, actor="me", reason="asked for")
    shown = " ".join(run("job", "show", "job-aaaaaa").stdout.split())
    assert shown.count("ended at step 4 of 10; 6 rows were never used") == 2
    assert "stop: asked for; ended at step 4 of 10" in shown
