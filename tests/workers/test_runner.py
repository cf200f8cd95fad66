"""What a runner makes of what its trainer says, on a real registry."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import workers.runner
from config.settings import Settings
from registry import commands, leases, queue
from registry.records import Checkpoint, Event, TrainingJob
from registry.states import Command, JobState
from registry.store import Registry
from registry.testing import ManualClock, make_suite
from trainer.config.hyperparameters import Hyperparameters
from trainer.messages import Failed, FailureKind, Finished, Warned
from workers.run_watch import WARNING_KIND
from workers.runner import TrainingRun
from workers.testing import FakeChild, finished, progress, saved

Start = Callable[..., TrainingRun]


def job_of(registry: Registry) -> TrainingJob:
    with registry.reading() as tx:
        return tx.get(TrainingJob, "job-aaaaaa")


def environment_of(settings: Settings) -> dict[str, object]:
    """The section of the job file that the last trainer was given."""
    written = json.loads((settings.paths.run / "jobs" / "job-aaaaaa.json").read_text())
    environment: dict[str, object] = written["environment"]
    return environment


def last_reason(registry: Registry) -> str:
    with registry.reading() as tx:
        return tx.find(Event, kind="TrainingJob", newest_first="id", limit=1)[0].reason


def failed(kind: FailureKind) -> Failed:
    return Failed(kind=kind, message="something", remedy="do this")


def test_a_run_that_ends_well_succeeds_with_its_checkpoints(
    registry: Registry, start: Start, tmp_path: Path
) -> None:
    lines = [progress(5), saved(5, path=tmp_path), progress(10), saved(10, path=tmp_path, is_final=True)]
    start(FakeChild([*lines, finished()])).run()
    job = job_of(registry)
    assert job.state is JobState.SUCCEEDED
    assert job.final_checkpoint_id == "ckpt-aaaaaa-00000010"
    assert job.parent_checkpoint_id == "base-aaaaaa"
    with registry.reading() as tx:
        steps = [found.step for found in tx.find(Checkpoint, job_id=job.id)]
        assert not leases.is_held(tx, resource=queue.resource_of(job.id))
    assert steps == [5, 10]


def test_rows_that_were_not_learnt_whole_are_told_with_the_job(registry: Registry, start: Start) -> None:
    result = finished().result.changed(num_dropped_rows=2, num_truncated_rows=3)
    start(FakeChild([progress(10), Finished(result=result)])).run()
    note = "2 rows over max_length were left out; 3 rows over max_length were cut off"
    assert job_of(registry).note == note


def test_a_resumed_run_that_had_no_step_left_to_take_succeeds_with_its_true_progress(
    registry: Registry, start: Start, tmp_path: Path
) -> None:
    start(FakeChild([saved(10, path=tmp_path, is_final=True), finished()])).run()
    job = job_of(registry)
    assert job.state is JobState.SUCCEEDED
    assert job.progress is not None
    assert (job.progress.step, job.progress.num_steps, job.progress.num_unused_rows) == (10, 10, 0)


@pytest.mark.parametrize("kind", ["data", "config"])
def test_data_that_cannot_be_trained_on_is_rejected_and_not_tried_again(
    registry: Registry, start: Start, kind: FailureKind
) -> None:
    start(FakeChild([failed(kind)], return_code=3)).run()
    job = job_of(registry)
    assert job.state is JobState.REJECTED
    assert job.problems[0].message == "something do this"


@pytest.mark.parametrize("kind", ["diverged", "out_of_memory", "model"])
def test_what_a_retry_cannot_mend_fails_at_once(registry: Registry, start: Start, kind: FailureKind) -> None:
    start(FakeChild([progress(3), failed(kind)], return_code=4)).run()
    assert job_of(registry).state is JobState.FAILED


def test_what_needs_time_to_be_mended_is_tried_again_later(
    registry: Registry, start: Start, clock: ManualClock
) -> None:
    start(FakeChild([progress(3), failed("disk")], return_code=7)).run()
    job = job_of(registry)
    assert job.state is JobState.QUEUED
    assert job.not_before_at is not None
    assert 10 <= (job.not_before_at - clock.now).total_seconds() <= 20


def test_a_trainer_that_dies_without_a_word_is_tried_again_with_its_last_words_kept(
    registry: Registry, start: Start
) -> None:
    start(FakeChild([progress(3)], return_code=-9, words="Killed")).run()
    job = job_of(registry)
    assert job.state is JobState.QUEUED
    assert job.attempts == 1
    assert "killed by signal 9" in job.problems[0].message
    assert "Killed" in job.problems[0].message


@pytest.mark.parametrize("code", [-9, 137])
def test_a_trainer_that_the_kernel_killed_for_want_of_memory_goes_on_in_smaller_parts(
    registry: Registry, settings: Settings, start: Start, clock: ManualClock, code: int
) -> None:
    limits = []
    for _ in range(3):
        counts = iter((7, 8))
        start(FakeChild([progress(3)], return_code=code), count_oom_kills=lambda: next(counts)).run()  # noqa: B023
        limits.append(environment_of(settings)["max_part_tokens"])
        clock.advance(600)
    tokens = Hyperparameters().tokens_per_batch
    assert limits == [None, tokens // 2, tokens // 4]
    assert {problem.kind for problem in job_of(registry).problems} == {"out_of_memory_killed"}
    assert "for want of memory" in job_of(registry).problems[0].message


@pytest.mark.parametrize(("code", "before", "after"), [(-9, 7, 7), (-15, 7, 8), (-9, None, 8), (-9, 7, None)])
def test_a_trainer_that_died_otherwise_goes_on_as_it_was(
    registry: Registry, settings: Settings, start: Start, code: int, before: int | None, after: int | None
) -> None:
    counts = iter((before, after))
    start(FakeChild([progress(3)], return_code=code), count_oom_kills=lambda: next(counts)).run()
    start(FakeChild([progress(10), finished()])).run()
    assert [problem.kind for problem in job_of(registry).problems] == ["killed"]
    assert environment_of(settings)["max_part_tokens"] is None


def test_a_clean_exit_without_a_result_is_no_success(registry: Registry, start: Start) -> None:
    start(FakeChild([progress(10)], return_code=0)).run()
    assert job_of(registry).state is JobState.QUEUED


def test_a_worker_that_must_stop_has_the_trainer_save_and_gives_the_job_back(
    registry: Registry, start: Start, tmp_path: Path
) -> None:
    child = FakeChild([progress(3), saved(3, path=tmp_path), finished("stopped", step=3)])
    run = start(child)
    run.should_stop = lambda: True
    run.run()
    job = job_of(registry)
    assert child.requests == ["stop"]
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_a_trainer_that_could_not_save_in_time_costs_its_job_no_attempt(
    registry: Registry, start: Start
) -> None:
    seconds = iter(range(0, 10_000, 30))
    run = start(FakeChild([progress(step) for step in range(1, 9)], return_code=-9))
    run.should_stop = lambda: True
    run.monotonic = lambda: float(next(seconds))
    run.run()
    job = job_of(registry)
    assert (job.state, job.attempts, job.problems) == (JobState.QUEUED, 0, ())
    assert last_reason(registry) == (
        "the worker was told to stop; nothing was saved within 60 s; it goes on from its last checkpoint"
    )


def test_a_trainer_that_died_while_it_was_to_save_costs_its_job_no_attempt(
    registry: Registry, start: Start
) -> None:
    start(FakeChild([progress(3), progress(4)], return_code=-9), should_stop=lambda: True).run()
    assert (job_of(registry).state, job_of(registry).attempts) == (JobState.QUEUED, 0)
    assert "unsaved: killed by signal 9" in last_reason(registry)


def test_what_the_trainer_reports_as_wrong_while_it_is_to_stop_is_charged(
    registry: Registry, start: Start
) -> None:
    child = FakeChild([progress(3), failed("internal")], return_code=1)
    start(child, should_stop=lambda: True).run()
    assert (job_of(registry).state, job_of(registry).attempts) == (JobState.QUEUED, 1)


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (Command.PAUSE, JobState.PAUSED),
        (Command.SKIP, JobState.QUEUED),
        (Command.STOP, JobState.STOPPED),
        (Command.CANCEL, JobState.CANCELLED),
    ],
)
def test_a_trainer_is_told_what_a_person_asked_and_the_job_obeys(
    registry: Registry, start: Start, command: Command, state: JobState, tmp_path: Path
) -> None:
    def ask() -> None:
        with registry.transaction() as tx:
            commands.give(tx, job_id="job-aaaaaa", command=command, actor="me", reason="a test")

    child = FakeChild([progress(3), ask, progress(4), saved(4, path=tmp_path), finished("paused", step=4)])
    run = start(child)
    run.command_seconds = 0.0
    run.run()
    job = job_of(registry)
    assert (job.state, job.command, job.attempts) == (state, None, 0)
    assert child.was_ended
    assert child.requests == ([] if command is Command.CANCEL else ["pause"])


def test_a_command_that_comes_after_the_last_step_does_not_undo_success(
    registry: Registry, start: Start, tmp_path: Path
) -> None:
    def ask() -> None:
        with registry.transaction() as tx:
            commands.give(tx, job_id="job-aaaaaa", command=Command.PAUSE, actor="me", reason="late")

    run = start(FakeChild([progress(10), ask, saved(10, path=tmp_path, is_final=True), finished()]))
    run.command_seconds = 0.0
    run.run()
    assert (job_of(registry).state, job_of(registry).command) == (JobState.SUCCEEDED, None)


def test_a_runner_that_lost_its_lease_writes_nothing_more_and_ends_its_trainer(
    registry: Registry, start: Start, clock: ManualClock, tmp_path: Path
) -> None:
    def lose_lease() -> None:
        clock.advance(61)
        with registry.transaction() as tx:
            queue.requeue_abandoned(tx, actor="sweep")

    child = FakeChild([progress(3), lose_lease, saved(5, path=tmp_path), finished()])
    start(child).run()
    job = job_of(registry)
    assert child.was_ended
    assert job.state is JobState.QUEUED
    with registry.reading() as tx:
        assert tx.find(Checkpoint, job_id=job.id) == []


def test_a_runner_whose_worker_was_killed_ends_its_trainer_and_writes_nothing(
    registry: Registry, start: Start
) -> None:
    child = FakeChild([progress(3), progress(4), finished()])
    run = start(child)
    run.parent_pid = -1
    run.run()
    assert child.was_ended
    assert job_of(registry).state is JobState.RUNNING


def test_a_checkpoint_that_is_said_twice_is_recorded_once(
    registry: Registry, start: Start, tmp_path: Path
) -> None:
    lines = [saved(5, path=tmp_path), saved(5, path=tmp_path), saved(10, path=tmp_path, is_final=True)]
    start(FakeChild([*lines, finished()])).run()
    with registry.reading() as tx:
        added = [event for event in tx.find(Event, kind="Checkpoint") if "step" in event.reason]
    assert [event.subject_id for event in added] == ["ckpt-aaaaaa-00000005", "ckpt-aaaaaa-00000010"]


def test_the_status_file_follows_the_run(registry: Registry, settings: Settings, start: Start) -> None:
    seen: list[dict[str, object]] = []

    def read() -> None:
        seen.append(json.loads((settings.paths.status / "training_status.json").read_text()))

    start(FakeChild([read, progress(4), read, finished(), read])).run()
    read()
    assert [status["status"] for status in seen] == ["training", "training", "training", "idle"]
    assert (seen[1]["step"], seen[1]["total_steps"], seen[1]["loss"]) == (4, 10, 1.0)
    assert seen[1]["eta_seconds"] == 6.0
    assert seen[1]["unmeasured_because"]
    assert seen[1]["preview_unknown_because"] == "no checkpoint was evaluated yet"
    assert isinstance(seen[1]["queue_velocity"], dict)
    assert isinstance(seen[1]["device"], dict)
    assert "succeeded" in str(seen[3]["reason"])


def test_a_run_that_diverged_leaves_an_alert_an_event_and_its_error_with_its_class(
    registry: Registry, settings: Settings, start: Start
) -> None:
    start(FakeChild([progress(3), failed("diverged")], return_code=4)).run()
    with registry.reading() as tx:
        raised = [event.reason for event in tx.find(Event, kind="TrainingAlert")]
    assert raised == ["not_finite: something"]
    found = json.loads((settings.paths.status / "training_status.json").read_text())
    assert [(alert["kind"], alert["value"], alert["since_step"]) for alert in found["alerts"]] == [
        ("not_finite", None, 3)
    ]
    assert (found["error"]["kind"], found["error"]["message"]) == ("diverged", "something do this")


def test_the_gap_is_measured_on_the_active_suite(
    registry: Registry, settings: Settings, start: Start
) -> None:
    with registry.transaction() as tx:
        tx.add(make_suite(path="/somewhere/suite.jsonl"), actor="test")
    start(FakeChild([progress(10), finished()])).run()
    written = json.loads((settings.paths.run / "jobs" / "job-aaaaaa.json").read_text())
    assert written["monitoring"]["validation_path"] == "/somewhere/suite.jsonl"
    assert written["monitoring"]["logs_dir"] == str(settings.paths.logs)


def test_what_the_trainer_warns_of_is_an_event_of_its_job_and_stands_in_the_log(
    registry: Registry, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    words = "Memory ran out at 4 rows: the same step is taken again in parts of at most 128 tokens."
    start(FakeChild([progress(3), Warned(message=words), progress(10), finished()])).run()
    with registry.reading() as tx:
        found = [(event.subject_id, event.after, event.reason) for event in tx.find(Event, kind=WARNING_KIND)]
    assert found == [("job-aaaaaa", "warned", words)]
    assert f"job-aaaaaa: {words}" in caplog.text


def test_a_status_file_that_cannot_be_written_ends_no_training(
    registry: Registry, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.runner, "write_training_status", no_space)
    start(FakeChild([progress(10), finished()])).run()
    assert (job_of(registry).state, job_of(registry).attempts) == (JobState.SUCCEEDED, 0)


@pytest.mark.parametrize("seam", ["on_start", "on_checkpoint", "take_signals"])
def test_what_the_sweep_does_again_ends_no_training(
    registry: Registry, start: Start, tmp_path: Path, seam: str
) -> None:
    child = FakeChild([progress(5), saved(10, path=tmp_path, is_final=True), finished()])
    start(child, command_seconds=0.0, **{seam: no_space}).run()
    assert (job_of(registry).state, job_of(registry).attempts) == (JobState.SUCCEEDED, 0)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, "disk"), (errno.ESTALE, "network"), (errno.EMFILE, "internal")]
)
def test_a_trainer_that_cannot_be_started_ends_the_attempt_with_its_class(
    registry: Registry, start: Start, number: int, kind: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no")

    start(FakeChild([]), start_child=refuse).run()
    job = job_of(registry)
    assert (job.state, job.attempts, job.problems[0].kind) == (JobState.QUEUED, 1, kind)
    assert "the trainer could not be started" in job.problems[0].message


def test_a_job_file_that_cannot_be_written_is_the_disks_fault(
    registry: Registry, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.runner, "write_job_file", no_space)
    start(FakeChild([])).run()
    assert job_of(registry).problems[0].kind == "disk"


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
