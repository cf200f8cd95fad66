"""A message that the broker delivers again and again is obeyed once, whatever happened meanwhile."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import tasks.door
from config.settings import load_settings, setting_names
from registry import hosts, queue
from registry.records import Host, TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import add_queued_job, make_checkpoint, make_registry
from workers import steering
from workers.app import app
from workers.celery_settings import TASK_MODULES
from workers.context import Context
from workers.testing import SilentContext

JOB = "job-aaaaaa"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = make_registry(tmp_path)
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
        add_queued_job(tx)
        add_queued_job(tx, id="job-b", priority=Priority.NORMAL)
        hosts.saw(tx, name="mars", role="train")
    return registry


@pytest.fixture(autouse=True)
def context(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Context:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    settings = load_settings(home=tmp_path / "home")
    settings.paths.prepare()
    found = SilentContext(settings=settings, registry=registry, celery=app)
    monkeypatch.setattr(tasks.door, "current_context", lambda: found)
    monkeypatch.setattr(steering, "answering_nodes", lambda _celery: [])
    for module in TASK_MODULES:
        importlib.import_module(module)
    return found


def deliver(task: str, message_id: str, /, **fields: Any) -> Any:
    """As a worker handles it, by Celery's own machinery."""
    return app.tasks[task].apply(kwargs=fields, task_id=message_id).get()


def job(registry: Registry, job_id: str = JOB) -> TrainingJob:
    with registry.reading() as tx:
        return tx.get(TrainingJob, job_id)


def put(registry: Registry, state: JobState) -> None:
    with registry.transaction() as tx:
        now = tx.get(TrainingJob, JOB)
        if state is JobState.FAILED:
            now = tx.transition(now, to=JobState.RUNNING, actor="test")
        if now.state is not state:
            tx.transition(now, to=state, actor="test")


def return_to(registry: Registry, state: JobState) -> None:
    """What a person did after the command: the job stands again as it stood before."""
    with registry.transaction() as tx:
        tx.update(tx.get(TrainingJob, JOB), state=state)


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        ("pause", JobState.QUEUED, JobState.PAUSED),
        ("resume", JobState.PAUSED, JobState.QUEUED),
        ("stop", JobState.QUEUED, JobState.STOPPED),
        ("cancel", JobState.QUEUED, JobState.CANCELLED),
        ("retry", JobState.FAILED, JobState.QUEUED),
    ],
)
def test_a_command_that_comes_five_times_is_obeyed_once(
    registry: Registry, command: str, before: JobState, after: JobState
) -> None:
    put(registry, before)
    first = deliver(f"training.{command}", "m-1", job_id=JOB)
    assert first["job"]["state"] == after
    return_to(registry, before)
    for _ in range(4):
        assert deliver(f"training.{command}", "m-1", job_id=JOB)["job"]["state"] == before
    assert job(registry).state is before
    assert deliver(f"training.{command}", "m-2", job_id=JOB)["job"]["state"] == after


def test_a_retry_that_comes_five_times_grants_three_attempts(registry: Registry) -> None:
    put(registry, JobState.FAILED)
    deliver("training.retry", "m-1", job_id=JOB)
    put(registry, JobState.FAILED)
    with registry.transaction() as tx:
        tx.update(tx.get(TrainingJob, JOB), attempts=3)
    for _ in range(4):
        deliver("training.retry", "m-1", job_id=JOB)
    found = job(registry)
    assert (found.state, found.max_attempts) == (JobState.FAILED, 3)


def test_a_pause_of_a_running_job_that_comes_again_is_not_passed_on_again(registry: Registry) -> None:
    with registry.transaction() as tx:
        assert queue.claim_next(tx, queues=tuple(Priority), holder="mars:1", seconds=60)
    assert deliver("training.pause", "m-1", job_id=JOB)["is_in_effect"] is False
    with registry.transaction() as tx:
        tx.update(tx.get(TrainingJob, JOB), command=None)  # done, and resumed, and running again
    for _ in range(4):
        assert deliver("training.pause", "m-1", job_id=JOB)["is_in_effect"] is True
    assert job(registry).command is None


def test_a_skip_and_a_move_that_come_five_times_change_the_order_once(registry: Registry) -> None:
    def order() -> list[str]:
        with registry.reading() as tx:
            return [found.id for found in queue.waiting(tx)]

    deliver("training.skip", "m-1", job_id=JOB)
    assert order() == ["job-b", JOB]
    deliver("training.move", "m-2", job_id=JOB)
    assert order() == [JOB, "job-b"]
    for _ in range(4):
        deliver("training.skip", "m-1", job_id=JOB)
    assert order() == [JOB, "job-b"]
    deliver("training.move", "m-3", job_id="job-b")
    for _ in range(4):
        deliver("training.move", "m-2", job_id=JOB)
    assert order() == ["job-b", JOB]


def test_a_priority_that_comes_five_times_is_set_once(registry: Registry) -> None:
    deliver("training.set_priority", "m-1", job_id=JOB, priority="high")
    deliver("training.set_priority", "m-2", job_id=JOB, priority="low")
    for _ in range(4):
        deliver("training.set_priority", "m-1", job_id=JOB, priority="high")
    assert job(registry).priority is Priority.LOW


@pytest.mark.parametrize(
    ("first", "second", "is_draining"), [("drain", "undrain", False), ("undrain", "drain", True)]
)
def test_a_drain_or_undrain_that_comes_five_times_is_obeyed_once(
    registry: Registry, first: str, second: str, is_draining: bool
) -> None:
    deliver(f"host.{first}", "m-1", host="mars")
    deliver(f"host.{second}", "m-2", host="mars")
    for _ in range(4):
        deliver(f"host.{first}", "m-1", host="mars")
    with registry.reading() as tx:
        assert tx.get(Host, "mars").is_draining is is_draining


@pytest.mark.parametrize("force", [False, True])
def test_a_submission_that_comes_five_times_is_one_job(
    registry: Registry, context: Context, force: bool
) -> None:
    path = context.settings.paths.inbox / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    fields = {"dataset": str(path), "force": force}
    answers = [deliver("training.submit", "m-1", **fields) for _ in range(5)]
    assert len({answer["job"]["id"] for answer in answers}) == 1
    assert answers[-1]["is_new"] is force
    other = deliver("training.submit", "m-2", **fields)
    assert (other["job"]["id"] != answers[0]["job"]["id"]) is force
