"""Steering a real stack: stop, files, places, start times, draining, retry."""

import json
import random
import socket
import time
from itertools import pairwise

import psutil
import pytest

from registry.records import Checkpoint, Event, TrainingJob
from registry.states import JobState
from tasks.api import JobHandle
from tasks.testing import Stack, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LONG = {"learning_rate": 0.001, "tokens_per_batch": 320, "num_epochs": 20}
SHORT = {"tokens_per_batch": 640, "max_steps": 3}
NUM_PAUSES = 3
MAX_PAUSE_SECONDS = 2.0
NOISE = 10.0  # a machine that others keep busy


def submit(stack: Stack, name: str, *, skip: int, num_rows: int = 600, **options: object) -> JobHandle:
    path = stack.write_words(f"{name}.jsonl", num_rows=num_rows, skip=skip)
    return stack.client.submit(path, parent="base", **options)  # type: ignore[arg-type]


def wait_until_training(handle: JobHandle) -> None:
    def is_under_way() -> bool:
        progress = handle.row.progress
        return handle.row.state is JobState.RUNNING and progress is not None and progress.step >= 2

    wait_for(is_under_way, seconds=90, message=f"{handle.id} trains")


def wait_until_training_anew(handle: JobHandle) -> None:
    before = handle.row.progress
    step = 0 if before is None else before.step

    def is_under_way() -> bool:
        progress = handle.row.progress
        return handle.row.state is JobState.RUNNING and progress is not None and progress.step >= step + 2

    wait_for(is_under_way, seconds=120, message=f"{handle.id} trains")


def seconds_to_obey(stack: Stack, handle: JobHandle) -> float:
    """From the last command until the step was saved after which nothing was trained, by the registry.

    The job is called paused a little later: once its trainer's process and memory are gone.
    """
    with stack.registry.reading() as tx:
        done, asked = tx.find(Event, subject_id=handle.id, newest_first="id", limit=2)
        (saved,) = tx.find(Checkpoint, job_id=handle.id, newest_first="step", limit=1)
    assert (asked.after, done.after) == ("pause asked for", JobState.PAUSED)
    assert asked.at < saved.created_at < done.at
    return (saved.created_at - asked.at).total_seconds()


def wait_for_state(handle: JobHandle, state: JobState, *, seconds: float = 60) -> TrainingJob:
    wait_for(lambda: handle.row.state is state, seconds=seconds, message=f"{handle.id} is {state}")
    return handle.row


def restart(stack: Stack, node: str) -> None:
    """End a worker; the stack starts it again."""
    control = stack.client.context.celery.control
    before = control.inspect([node], timeout=5).stats()[node]["pid"]
    psutil.Process(before).terminate()

    def is_back() -> bool:
        answers = control.inspect([node], timeout=2).stats() or {}
        return node in answers and answers[node]["pid"] != before

    wait_for(is_back, seconds=60, message=f"{node} is started again")


def test_a_stopped_job_is_saved_and_says_what_was_not_used(stack: Stack, served: Checkpoint) -> None:
    handle = submit(stack, "stopped", skip=200, num_rows=4000, hyperparameters=LONG)
    wait_until_training(handle)
    asked = stack.tandem("job", "stop", handle.id)
    assert asked.returncode == 0, asked.stderr
    assert "stop is asked for" in asked.stdout
    job = wait_for_state(handle, JobState.STOPPED)
    assert job.progress is not None
    assert job.progress.num_unused_rows is not None
    assert 0 < job.progress.num_unused_rows < 4000
    assert f"{job.progress.num_unused_rows} rows were never used" in job.note
    with stack.registry.reading() as tx:
        assert job.final_checkpoint_id is not None
        last = tx.get(Checkpoint, job.final_checkpoint_id)
    assert last.step == job.progress.step
    assert not last.is_final


def test_a_stopped_job_is_taken_up_again_by_retry(stack: Stack, served: Checkpoint) -> None:
    handle = submit(stack, "again", skip=300, hyperparameters={**LONG, "num_epochs": 2})
    assert stack.tandem("job", "stop", handle.id).returncode == 0
    wait_for(lambda: handle.row.state is JobState.STOPPED, seconds=60, message="it is stopped")
    retried = stack.tandem("job", "retry", handle.id)
    assert "retry is in effect" in retried.stdout, retried.stderr
    assert handle.wait(timeout_seconds=120).state is JobState.SUCCEEDED


def test_a_file_in_the_control_folder_pauses_and_another_resumes(stack: Stack, served: Checkpoint) -> None:
    handle = submit(stack, "by-file", skip=400, num_rows=3000, hyperparameters={**LONG, "num_epochs": 1})
    control = stack.settings.paths.control
    wait_until_training(handle)
    (control / "pause").touch()
    started = time.monotonic()
    wait_for_state(handle, JobState.PAUSED)
    print(f"paused {time.monotonic() - started:.2f} s after the file was made")
    answer = json.loads((control / "pause.answer.json").read_text())
    assert (answer["subject"], answer["answer"]) == (handle.id, "asked for")
    (control / "resume").touch()
    wait_for(lambda: handle.row.state is not JobState.PAUSED, seconds=20, message="it is resumed")
    assert handle.wait(timeout_seconds=180).state is JobState.SUCCEEDED


def test_a_pause_ends_training_and_is_saved_within_two_seconds(stack: Stack, served: Checkpoint) -> None:
    handle = submit(stack, "paused-often", skip=450, num_rows=3000, hyperparameters=LONG)
    seconds = []
    for _ in range(NUM_PAUSES):
        wait_until_training_anew(handle)
        assert not handle.pause()
        wait_for_state(handle, JobState.PAUSED)
        seconds.append(seconds_to_obey(stack, handle))
        assert handle.resume()
    handle.cancel()
    print(f"saved after {', '.join(f'{taken:.2f}' for taken in seconds)} s, the step included")
    # Whatever else the machine does makes a pause longer, never shorter.
    assert min(seconds) < MAX_PAUSE_SECONDS
    assert max(seconds) < NOISE * MAX_PAUSE_SECONDS


def test_a_drained_host_finishes_takes_nothing_new_and_the_queue_can_be_put_in_order(
    stack: Stack, served: Checkpoint
) -> None:
    host = socket.gethostname()
    running = submit(stack, "drained", skip=500, num_rows=2000, hyperparameters={**LONG, "num_epochs": 1})
    wait_until_training(running)
    drained = stack.tandem("drain", host)
    assert f"finishes {running.id}" in drained.stdout, drained.stderr
    assert running.wait(timeout_seconds=180).state is JobState.SUCCEEDED
    waiting = [
        submit(stack, f"place-{number}", skip=600 + number, hyperparameters=SHORT) for number in range(4)
    ]
    first, second, third, fourth = waiting
    assert stack.tandem("queue", "move", fourth.id).returncode == 0
    assert stack.tandem("queue", "move", first.id, "--to-end").returncode == 0
    assert stack.tandem("queue", "set-priority", third.id, "high").returncode == 0
    time.sleep(2 * stack.settings.schedule.sweep_seconds)
    assert {handle.row.state for handle in waiting} == {JobState.QUEUED}
    node = f"intelligence@{host}"
    inspect = stack.client.context.celery.control.inspect([node], timeout=5)
    assert inspect.active_queues()[node] == []
    assert "in effect" in stack.tandem("drain").stdout
    restart(stack, node)
    assert inspect.active_queues()[node] == []
    assert stack.tandem("undrain").returncode == 0
    rows = [handle.wait(timeout_seconds=180) for handle in (third, fourth, second, first)]
    assert {job.state for job in rows} == {JobState.SUCCEEDED}
    assert all(a.started_at < b.started_at for a, b in pairwise(rows) if a.started_at and b.started_at)
    assert {found["name"] for found in inspect.active_queues()[node]} == {"evaluation", "intelligence"}


def test_a_job_waits_for_its_time_and_for_the_job_before_it(stack: Stack, served: Checkpoint) -> None:
    first = submit(stack, "first", skip=700, hyperparameters=SHORT)
    path = stack.write_words("second.jsonl", num_rows=600, skip=701)
    arguments = [
        "--after",
        first.id,
        "--priority",
        "high",
        "--parent",
        "base",
        "--set",
        "max_steps=3",
        "--json",
    ]
    second = json.loads(stack.tandem("submit", str(path), *arguments).stdout)
    handle = stack.client.job(second["id"])
    late = stack.write_words("late.jsonl", num_rows=600, skip=702)
    third = json.loads(
        stack.tandem("submit", str(late), "--at", "+8s", "--json", "--set", "max_steps=3").stdout
    )
    rows = [item.wait(timeout_seconds=120) for item in (first, handle, stack.client.job(third["id"]))]
    assert {job.state for job in rows} == {JobState.SUCCEEDED}
    assert rows[0].finished_at is not None
    assert rows[1].started_at is not None
    assert rows[0].finished_at <= rows[1].started_at
    assert rows[2].started_at is not None
    assert rows[2].not_before_at is not None
    assert rows[2].not_before_at <= rows[2].started_at


def test_what_cannot_be_done_is_one_sentence(stack: Stack, served: Checkpoint) -> None:
    stack.write_words("fine.jsonl", num_rows=60, skip=950)
    for arguments, words in [
        (("drain", "mars"), "No worker was ever seen on a host 'mars'"),
        (("job", "stop", "job-nowhere"), "There is no TrainingJob 'job-nowhere'"),
        (("submit", "fine.jsonl", "--at", "soon"), "--at 'soon' is no time"),
        (("submit", "fine.jsonl", "--force", "--after", "job-nowhere"), "job-nowhere"),
        (("queue", "move", "job-nowhere"), "job-nowhere"),
    ]:
        answered = stack.tandem(*arguments)
        assert answered.returncode in (1, 2)
        assert words in answered.stderr
        assert "Traceback" not in answered.stderr


def test_a_trainer_killed_at_any_step_goes_on_to_the_very_same_weights(
    stack: Stack, served: Checkpoint
) -> None:
    options = {"hyperparameters": {**LONG, "num_epochs": 6}, "num_rows": 1200}
    whole = submit(stack, "whole", skip=900, **options)
    assert whole.wait(timeout_seconds=180).state is JobState.SUCCEEDED
    assert whole.row.progress is not None
    # Progress is told about once a second: the later half is left to tell it and to kill in.
    step = random.randrange(2, whole.row.progress.num_steps // 2)
    print(f"killed at step {step} of {whole.row.progress.num_steps}")
    killed = submit(stack, "whole", skip=900, force=True, **options)

    def is_far_enough() -> bool:
        progress = killed.row.progress
        return progress is not None and progress.step >= step

    wait_for(is_far_enough, seconds=90, message=f"step {step}")
    trainers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if killed.id in " ".join(process.info["cmdline"] or [])
    ]
    assert trainers
    for process in trainers:
        process.kill()
    row = killed.wait(timeout_seconds=180)
    assert (row.state, row.attempts) == (JobState.SUCCEEDED, 1)
    ids = [whole.row.final_checkpoint_id or "none", row.final_checkpoint_id or "none"]
    with stack.registry.reading() as tx:
        finals = [tx.get(Checkpoint, found) for found in ids]
    assert finals[0].weights_sha256 == finals[1].weights_sha256
