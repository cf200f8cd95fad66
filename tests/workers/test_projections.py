"""What the status files say, and when they stop saying it."""

import json
from datetime import timedelta
from pathlib import Path

from config.settings import Settings
from registry import hosts, queue
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest
from registry.states import DeploymentState, Priority
from registry.status_files import LastDeployment
from registry.store import Registry
from registry.testing import (
    START,
    ManualClock,
    add_queued_job,
    make_calibration,
    make_checkpoint,
    make_deployment,
    make_suite,
)
from workers import projections, training_statuses
from workers.testing_evaluations import add_evaluated, right_on


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
    assert names == {
        "training_status",
        "regression_monitoring",
        "automated_testing",
        "confidence_calibration",
        "model_comparisons",
    }
    note = json.loads((settings.paths.status / "model_comparisons.json").read_text())["note"]
    assert note == "no suite is active"


def test_what_training_waits_for_is_said_beside_what_went_wrong_before(registry: Registry) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
        hosts.saw(tx, name="big", role="train")
        hosts.note_obstacle(tx, name="big", obstacle="job-aaaaaa waits: gpu-0 is held.", actor="big:1")
        idle = training_statuses.current(tx)
        found = queue.claim_next(tx, queues=tuple(Priority), holder="big:1", seconds=60)
        assert found is not None
        queue.record_problem(
            tx, found[0], kind="killed", message="It died.", can_retry=True, actor="big:1", lease=found[1]
        )
        crashed = training_statuses.current(tx)
    assert (idle.status, idle.reason) == ("idle", "job-aaaaaa waits: gpu-0 is held.")
    assert (crashed.status, crashed.reason) == ("crashed", "It died. Now job-aaaaaa waits: gpu-0 is held.")


def test_calibrations_are_told_newest_first_with_what_is_unknown_counted(
    registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        add_evaluated(tx, "one", examples=right_on(20))
        known = make_calibration(checkpoint_id="one", evaluation_id="eval-one")
        tx.add(known, actor="test")
        later = known.changed(
            id="cal-2",
            outcome="unknown",
            map=None,
            reason="Too few.",
            decided_at=clock.now + timedelta(seconds=1),
        )
        tx.add(later, actor="test")
    projections.refresh(registry, settings=settings)
    found = json.loads((settings.paths.status / "confidence_calibration.json").read_text())
    assert [line["outcome"] for line in found["calibrations"]] == ["unknown", "unneeded"]
    assert [line["map_kind"] for line in found["calibrations"]] == [None, "identity"]
    assert (found["num_unknown"], found["num_mapped"]) == (1, 0)


def test_the_last_deployment_tells_how_long_what_hashes_how_much_and_when_it_ended(
    registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "training_state.safetensors").write_bytes(b"moments")
    files = list_files(checkpoint)
    manifest = Manifest(
        files=files, weights_sha256=weights_sha256(files), code_version="test", created_at=START
    )
    write_manifest(checkpoint, manifest=manifest)
    ended = START + timedelta(seconds=9)
    deployment = make_deployment(
        state=DeploymentState.SUPERSEDED,
        release_path="/far/r000001-aaaaaaaa",
        num_files=2,
        num_bytes=1007,
        duration_seconds=4.5,
        ended_at=ended,
    )
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id=deployment.checkpoint_id, path=str(checkpoint)), actor="test")
        tx.add(deployment, actor="test")
    projections.refresh(registry, settings=settings)
    told = LastDeployment.model_validate_json((settings.paths.status / "last_deployment.json").read_bytes())
    assert (told.release_id, told.generation, told.duration_seconds) == (deployment.id, 1, 4.5)
    assert (told.release_path, told.num_files, told.num_bytes) == ("/far/r000001-aaaaaaaa", 2, 1007)
    assert (told.started_at, told.ended_at) == (START, ended)
    assert told.weights_sha256 == deployment.weights_sha256
    assert told.file_sha256 == {"model.safetensors": files["model.safetensors"].sha256}


def test_a_deployment_whose_checkpoint_is_gone_tells_no_hashes_of_files(
    registry: Registry, settings: Settings
) -> None:
    deployment = make_deployment()
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id=deployment.checkpoint_id, path="/nowhere"), actor="test")
        tx.add(deployment, actor="test")
    told = projections.last_deployment(registry)
    assert told is not None
    assert told.file_sha256 == {}


def test_where_nothing_was_deployed_there_is_no_last_deployment(registry: Registry) -> None:
    assert projections.last_deployment(registry) is None
