"""The folders of the queue say what the registry says, whatever a person did to them."""

import fcntl
import json
from datetime import timedelta
from pathlib import Path

import pytest

from config.settings import Settings
from registry import commands, queue
from registry.records import Lease, TrainingJob
from registry.states import Command, JobState, Priority
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job, make_dataset, make_job
from workers import inbox, queue_folders


@pytest.fixture
def folders(settings: Settings) -> Path:
    return settings.paths.queue


def listing(registry: Registry, settings: Settings) -> dict[str, list[str]]:
    queue_folders.refresh(registry, settings=settings)
    found = {
        folder.name: sorted(path.name for path in folder.iterdir())
        for folder in settings.paths.queue.iterdir()
    }
    return {name: files for name, files in found.items() if files}


def claim(registry: Registry) -> tuple[TrainingJob, Lease]:
    with registry.transaction() as tx:
        claimed = queue.claim_next(tx, queues=tuple(Priority), holder="worker", seconds=60)
    assert claimed is not None
    return claimed.job, claimed.lease


def fail(registry: Registry, *, message: str = "no more memory") -> None:
    job, lease = claim(registry)
    with registry.transaction() as tx:
        queue.record_problem(
            tx, job, kind="out_of_memory", message=message, can_retry=False, actor="w", lease=lease
        )


def succeed(registry: Registry) -> None:
    job, _ = claim(registry)
    with registry.transaction() as tx:
        tx.transition(job, to=JobState.SUCCEEDED, actor="worker", finished_at=tx.now)


def test_every_folder_is_there_though_nothing_is_in_it(registry: Registry, settings: Settings) -> None:
    assert listing(registry, settings) == {}
    assert {path.name for path in settings.paths.queue.iterdir()} == set(queue_folders.FOLDERS)


def test_waiting_jobs_are_listed_in_the_order_in_which_they_will_run(
    registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-bbbbbb", name="second file")
    clock.advance(-10)
    with registry.transaction() as tx:
        add_queued_job(tx, id="job-aaaaaa", name="first/file")
        add_queued_job(tx, id="job-cccccc", name="urgent", priority=Priority.HIGH)
        add_queued_job(tx, id="job-dddddd", name="resting")
    with registry.transaction() as tx:
        commands.give(tx, job_id="job-dddddd", command=Command.PAUSE, actor="test", reason="")
        queue_order = [job.id for job in queue.waiting(tx, queues=(Priority.NORMAL,))]
    found = listing(registry, settings)
    assert found["high"] == ["0001-urgent-job-cccccc.json"]
    assert [name.split("-", 2)[2][-15:-5] for name in found["normal"][:2]] == queue_order
    assert found["normal"][2] == "paused-resting-job-dddddd.json"
    assert {name.split("-")[1] for name in found["normal"]} == {"first_file", "second_file", "resting"}


def test_a_file_says_what_the_job_is_and_where_its_rows_lie(registry: Registry, settings: Settings) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    listing(registry, settings)
    path = settings.paths.queue / "normal" / "0001-words-job-aaaaaa.json"
    found = json.loads(path.read_text())
    assert (found["id"], found["state"], found["dataset"]) == ("job-aaaaaa", "queued", "words.jsonl")
    assert found["num_rows"] == 10


def test_a_job_moves_from_its_queue_to_processing_to_recently_completed(
    registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        add_queued_job(tx, id="job-bbbbbb")
    assert listing(registry, settings)["normal"] == [
        "0001-words-job-aaaaaa.json",
        "0002-words-job-bbbbbb.json",
    ]
    job, _ = claim(registry)
    found = listing(registry, settings)
    assert found == {
        "normal": ["0001-words-job-bbbbbb.json"],
        "processing": ["20260101T120000Z-words-job-aaaaaa.json"],
    }
    clock.advance(60)
    with registry.transaction() as tx:
        tx.transition(job, to=JobState.SUCCEEDED, actor="worker", finished_at=tx.now)
    found = listing(registry, settings)
    assert found["recently_completed"] == ["20260101T120100Z-words-job-aaaaaa.json"]
    assert "processing" not in found


def test_what_failed_or_was_rejected_has_its_reason_beside_it_until_it_is_tried_again(
    registry: Registry, settings: Settings
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        add_queued_job(tx, id="job-bbbbbb")
    fail(registry)
    job, lease = claim(registry)
    with registry.transaction() as tx:
        queue.reject(tx, job, kind="data", message="row 3 is too long", lease=lease, actor="worker")
    found = listing(registry, settings)["failed"]
    stem = "20260101T120000Z-words-job"
    assert found == sorted(
        f"{stem}-{job}{end}.json" for job in ("aaaaaa", "bbbbbb") for end in ("", ".reason")
    )
    reason = json.loads((settings.paths.queue / "failed" / f"{stem}-aaaaaa.reason.json").read_text())
    assert (reason["file"], reason["reason"]) == (f"{stem}-aaaaaa.json", "no more memory")
    with registry.transaction() as tx:
        for job_id in ("job-aaaaaa", "job-bbbbbb"):
            commands.give(tx, job_id=job_id, command=Command.RETRY, actor="test", reason="")
    assert set(listing(registry, settings)) == {"normal"}


def test_a_completed_job_stays_for_as_long_as_it_is_set_and_is_then_removed(
    registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    succeed(registry)
    clock.advance(timedelta(days=6.9).total_seconds())
    assert "recently_completed" in listing(registry, settings)
    clock.advance(timedelta(days=0.2).total_seconds())
    assert listing(registry, settings) == {}


def test_a_cancelled_job_is_in_no_folder(registry: Registry, settings: Settings) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        commands.give(tx, job_id="job-aaaaaa", command=Command.CANCEL, actor="test", reason="")
    assert listing(registry, settings) == {}


def test_foreign_files_and_refused_ones_of_the_inbox_are_left_alone(
    registry: Registry, settings: Settings, folders: Path
) -> None:
    dropped = settings.paths.inbox / "0001-words-job-zzzzzz.jsonl"
    dropped.write_text("{}\n")
    inbox.refuse(dropped, settings=settings, reason="not a row")
    (folders / "high").mkdir()
    (folders / "high" / "notes.txt").write_text("mine")
    (folders / "high" / "0001-a-job-zzzzzz.json").mkdir()
    assert listing(registry, settings) == {
        "failed": ["0001-words-job-zzzzzz.jsonl", "0001-words-job-zzzzzz.jsonl.reason.json"],
        "high": ["0001-a-job-zzzzzz.json", "notes.txt"],
    }


def test_files_in_our_form_that_no_longer_hold_and_left_over_halves_are_removed(
    registry: Registry, settings: Settings, folders: Path
) -> None:
    for name in ("high/0001-a-job-zzzzzz.json", "failed/20250101T000000Z-a-job-zzzzzz.reason.json"):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).write_text("{}")
    (folders / "high" / ".0001-a-job-zzzzzz.json.x7y8").write_text("{")
    (folders / "high" / "0002-loop-job-zzzzzz.json").symlink_to("/nowhere")
    assert listing(registry, settings) == {}


@pytest.mark.parametrize("damage", [b"", b"{", b"not json \xff"])
def test_a_damaged_file_is_written_anew(
    registry: Registry, settings: Settings, folders: Path, damage: bytes
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        add_queued_job(tx, id="job-bbbbbb")
    succeed(registry)
    listing(registry, settings)
    files = [*folders.rglob("*.json")]
    assert len(files) == 2
    for path in files:
        path.write_bytes(damage)
    listing(registry, settings)
    assert {json.loads(path.read_text())["id"] for path in files} == {"job-aaaaaa", "job-bbbbbb"}


def test_a_second_refresh_writes_nothing(registry: Registry, settings: Settings, folders: Path) -> None:
    with registry.transaction() as tx:
        for job_id in ("job-aaaaaa", "job-bbbbbb", "job-cccccc"):
            add_queued_job(tx, id=job_id)
    succeed(registry)
    fail(registry)
    listing(registry, settings)
    before = {path: path.stat().st_ino for path in folders.rglob("*.json")}
    assert len(before) == 4
    listing(registry, settings)
    assert {path: path.stat().st_ino for path in folders.rglob("*.json")} == before


def test_a_folder_that_cannot_be_kept_stops_no_other(
    registry: Registry, settings: Settings, folders: Path
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx, priority=Priority.HIGH)
        add_queued_job(tx, id="job-bbbbbb")
    (folders / "high").write_text("a file where a folder should be")
    queue_folders.refresh(registry, settings=settings)
    assert [path.name for path in (folders / "normal").iterdir()] == ["0001-words-job-bbbbbb.json"]
    assert (folders / "high").read_text() == "a file where a folder should be"


def test_a_registry_that_is_away_ends_nothing(settings: Settings, folders: Path) -> None:
    queue_folders.refresh(Registry("sqlite:////no/such/place/tandem.db"), settings=settings)
    assert [*folders.rglob("*.json")] == []


def test_while_another_process_is_at_it_nothing_is_written(
    registry: Registry, settings: Settings, folders: Path
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    with (settings.paths.run / "queue.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        queue_folders.refresh(registry, settings=settings)
        assert [*folders.rglob("*.json")] == []
    assert "normal" in listing(registry, settings)


def test_however_long_or_strange_a_name_is_the_file_can_be_written(
    registry: Registry, settings: Settings
) -> None:
    names = {
        "job-aaaaaa": "词" * 300,
        "job-bbbbbb": "../../etc/passwd",
        "job-cccccc": "",
        "job-dddddd": "a\nb",
    }
    with registry.transaction() as tx:
        for job_id, name in names.items():
            add_queued_job(tx, id=job_id, name=name)
    found = listing(registry, settings)
    assert {name[-15:-5] for name in found["normal"]} == set(names)


def test_many_ended_jobs_come_in_portions(
    registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_folders, "MAX_NEW_FILES", 3)
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="test")
        for letter in "abcde":
            job = make_job(id=f"job-{letter * 6}", state=JobState.SUCCEEDED, finished_at=tx.now)
            tx.add(job, actor="test")
    assert len(listing(registry, settings)["recently_completed"]) == 3
    assert len(listing(registry, settings)["recently_completed"]) == 5
