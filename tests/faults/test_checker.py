"""The checker sees each kind of lie that is planted for it, and nothing where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from registry import leases, queue
from registry.ids import checkpoint_id
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest
from registry.records import Checkpoint, JobProgress, TrainingJob
from registry.states import CheckpointState, JobState, Priority
from registry.store import Registry
from registry.tables import checkpoints, datasets, events, jobs
from registry.testing import START, make_dataset, make_job, make_registry
from tests.faults import checker
from tests.faults.checker import Submitted
from trainer.core.trace import TRACE_NAME, RowTrace

NUM_ROWS = 4
SHA = "a" * 64
FILE = Submitted("words", SHA, NUM_ROWS)


@dataclass
class World:
    """A registry and a disk on which one job of four rows succeeded after its first trainer was killed."""

    registry: Registry
    directory: Path

    @property
    def trace(self) -> Path:
        return self.directory / TRACE_NAME

    def check(self, *, may_cost: tuple[str, ...] = ("killed",)) -> list[str]:
        with self.registry.reading() as tx:
            return checker.check(tx, submitted=[FILE], may_cost=may_cost)

    def execute(self, statement: Any) -> None:
        with self.registry.transaction() as tx:
            tx.connection.execute(statement)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.trace.read_text().splitlines()]

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        self.trace.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def world(tmp_path: Path) -> World:
    registry = make_registry(tmp_path)
    directory = tmp_path / "checkpoints" / "job-1"
    directory.mkdir(parents=True)
    _train(directory)
    with registry.transaction() as tx:
        tx.add(make_dataset(id="ds-1", content_sha256=SHA, num_rows=NUM_ROWS), actor="test")
        job, _ = queue.submit(tx, make_job(id="job-1", dataset_id="ds-1"), actor="test")
        job, lease = _claim(tx)
        queue.record_problem(tx, job, kind="killed", message="-9", can_retry=True, actor="test", lease=lease)
        job, lease = _claim(tx)
        for step in (2, 4):
            tx.add(_save(directory, step=step), actor="test")
        progress = JobProgress(step=4, num_steps=4, epoch=1, num_tokens=9, reported_at=START)
        tx.transition(
            job,
            to=JobState.SUCCEEDED,
            actor="test",
            final_checkpoint_id=checkpoint_id("job-1", step=4),
            progress=progress,
        )
        leases.release(tx, lease)
    return World(registry, directory)


def _claim(tx: Any) -> Any:
    claimed = queue.claim_next(tx, queues=[Priority.NORMAL], holder="test", seconds=60)
    assert claimed is not None
    return claimed.job, claimed.lease


def _train(directory: Path) -> None:
    """The first attempt saves step 2 and is killed after step 3; the second goes on from 2."""
    first = RowTrace(directory, attempt="first", resumed_from_step=0)
    for step in (1, 2):
        first.taken(step, rows=(step,))
    first.saved(2)
    first.taken(3, rows=(3,))
    second = RowTrace(directory, attempt="second", resumed_from_step=2)
    for step in (3, 4):
        second.taken(step, rows=(step,))
    second.saved(4)


def _save(directory: Path, *, step: int) -> Checkpoint:
    path = directory / f"step-{step:08d}"
    path.mkdir()
    (path / "model.safetensors").write_text(f"weights {step}")
    files = list_files(path)
    manifest = Manifest(
        files=files,
        weights_sha256=weights_sha256(files),
        job_id="job-1",
        step=step,
        num_steps=4,
        is_final=step == 4,
        code_version="0",
        created_at=START,
    )
    write_manifest(path, manifest=manifest)
    return Checkpoint(
        id=checkpoint_id("job-1", step=step),
        state=CheckpointState.COMPLETE,
        origin="trained",
        job_id="job-1",
        step=step,
        is_final=step == 4,
        path=str(path),
        weights_sha256=manifest.weights_sha256,
        created_at=START,
    )


def test_a_job_that_went_well_after_a_kill_is_found_clean(world: World) -> None:
    assert world.check() == []


def drop_step(world: World) -> None:
    world.write_lines([line for line in world.lines() if (line["attempt"], line["step"]) != ("first", 1)])


def train_a_row_twice(world: World) -> None:
    lines = world.lines()
    lines[-2]["rows"] = [3, 4]
    world.write_lines(lines)


def leave_a_row_out(world: World) -> None:
    lines = world.lines()
    lines[-2]["rows"] = []
    world.write_lines(lines)


def train_a_foreign_row(world: World) -> None:
    lines = world.lines()
    lines[-2]["rows"] = [4, 5]
    world.write_lines(lines)


def begin_again_where_nobody_stood(world: World) -> None:
    lines = [line | {"resumed_from_step": 1} for line in world.lines() if line["attempt"] == "second"]
    world.write_lines(lines)


def lose_the_job(world: World) -> None:
    world.execute(update(datasets).values(content_sha256="c" * 64))


def double_the_job(world: World) -> None:
    with world.registry.transaction() as tx:
        queue.submit(tx, make_job(id="job-2", dataset_id="ds-1", dedupe_key="two"), actor="test")


def train_what_nobody_submitted(world: World) -> None:
    with world.registry.transaction() as tx:
        tx.add(make_dataset(id="ds-2", content_sha256="b" * 64), actor="test")
        queue.submit(tx, make_job(id="job-2", dataset_id="ds-2", dedupe_key="two"), actor="test")


def log_an_illegal_step(world: World) -> None:
    _log(world, before="succeeded", after="running")


def log_a_step_from_elsewhere(world: World) -> None:
    _log(world, before="paused", after="succeeded")


def log_a_second_success(world: World) -> None:
    _log(world, before="succeeded", after="succeeded")


def give_a_token_twice(world: World) -> None:
    world.execute(
        update(events).where(events.c.reason == "claimed with token 2").values(reason="claimed with token 1")
    )


def move_the_job_without_an_event(world: World) -> None:
    world.execute(update(jobs).values(state="running"))


def remove_the_events(world: World) -> None:
    world.execute(delete(events).where(events.c.subject_id == "job-1"))


def fail_the_job(world: World) -> None:
    world.execute(update(jobs).values(state="failed"))
    world.execute(update(events).where(events.c.after == "succeeded").values(after="failed"))


def report_a_step_short(world: World) -> None:
    _change_job(world, progress=JobProgress(step=3, num_steps=4, epoch=1, num_tokens=9, reported_at=START))


def count_an_attempt_too_many(world: World) -> None:
    world.execute(update(jobs).values(attempts=2))


def damage_the_weights(world: World) -> None:
    (world.directory / "step-00000004" / "model.safetensors").write_text("weights 5")


def remove_a_checkpoint(world: World) -> None:
    (world.directory / "step-00000002" / "manifest.json").unlink()


def name_another_final_checkpoint(world: World) -> None:
    _change_job(world, final_checkpoint_id=checkpoint_id("job-1", step=2))


def name_no_final_checkpoint(world: World) -> None:
    _change_job(world, final_checkpoint_id=None)


def exchange_a_checkpoint(world: World) -> None:
    row = checkpoints.c.id == checkpoint_id("job-1", step=4)
    world.execute(update(checkpoints).where(row).values(path=str(world.directory / "step-00000002")))


def keep_a_lease(world: World) -> None:
    with world.registry.transaction() as tx:
        leases.acquire(tx, resource="job:job-1", holder="test", seconds=60)


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (drop_step, "first, from step 0, took the steps [2]"),
        (train_a_row_twice, "rows trained other than 1 times (row: times): {3: 2}"),
        (leave_a_row_out, "rows trained other than 1 times (row: times): {4: 0}"),
        (train_a_foreign_row, "rows [5] were trained and are not in its file"),
        (begin_again_where_nobody_stood, "second, from step 1, took the steps [3, 4]"),
        (lose_the_job, "words became 0 jobs"),
        (double_the_job, "words became 2 jobs"),
        (train_what_nobody_submitted, "which nobody submitted"),
        (log_an_illegal_step, "cannot go from succeeded to running"),
        (log_a_step_from_elsewhere, "starts at paused, after succeeded"),
        (log_a_second_success, "ended 2 times"),
        (give_a_token_twice, "token 1 was given after token 1"),
        (move_the_job_without_an_event, "is running, and its last event says succeeded"),
        (remove_the_events, "has a row and no event"),
        (fail_the_job, "is failed"),
        (report_a_step_short, "succeeded and reports (3, 4)"),
        (count_an_attempt_too_many, "counts 2 bad attempts and 1 problems"),
        (damage_the_weights, "does not have the sha256 that the manifest says"),
        (remove_a_checkpoint, "has no manifest.json"),
        (name_another_final_checkpoint, "as its last checkpoint; final are"),
        (name_no_final_checkpoint, "has no final checkpoint whose rows could be counted"),
        (exchange_a_checkpoint, "its manifest is that of another checkpoint"),
        (keep_a_lease, "is still held by test"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_planted_is_found(world: World, plant: Callable[[World], None], sentence: str) -> None:
    plant(world)
    assert [found for found in world.check() if sentence in found], world.check()


def test_a_problem_that_the_fault_does_not_cause_is_a_false_charge(world: World) -> None:
    (found,) = world.check(may_cost=())
    assert "is charged with killed, which the fault does not cause" in found


def test_an_attempt_killed_before_it_could_write_that_it_saved_counts_all_the_same(world: World) -> None:
    world.write_lines([line for line in world.lines() if line["what"] == "taken"])
    assert world.check() == []


def test_a_sleeper_that_wakes_and_saves_the_same_step_again_spoils_no_lineage(world: World) -> None:
    late = RowTrace(world.directory, attempt="late", resumed_from_step=0)
    for step in (1, 2, 3):
        late.taken(step, rows=(step,))
    assert world.check() == []


def _log(world: World, *, before: str, after: str) -> None:
    at = START + timedelta(seconds=1)
    values = {"actor": "test", "kind": "TrainingJob", "subject_id": "job-1", "reason": "", "data": {}}
    world.execute(insert(events).values(at=at, before=before, after=after, **values))


def _change_job(world: World, **changes: Any) -> None:
    with world.registry.transaction() as tx:
        tx.update(tx.get(TrainingJob, "job-1"), **changes)
