"""Whether the next piece of work may begin, on the real main memory of this machine."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, load_settings
from registry import hosts
from registry.messages import ArtifactReference, EvaluationRequest
from registry.records import Event, GenerationSettings
from registry.store import Registry
from registry.testing import SHA, add_queued_job, make_checkpoint, make_shape
from workers import admission
from workers.admission import Kind
from workers.app import app
from workers.context import Context
from workers.devices import DeviceProcess
from workers.guard import Need
from workers.runner import claim
from workers.testing import FakeDevice

FULL = 10**15  # bytes: more than any machine has


def context_of(registry: Registry, *, home: Path, reserve_bytes: int) -> Context:
    settings: Settings = load_settings(
        home=home,
        guard={"reserve_bytes": reserve_bytes},
        training={"device": "cpu"},
    )
    return Context(settings=settings, registry=registry, celery=app)


@pytest.fixture
def home(settings: Settings, registry: Registry) -> Path:
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
    return settings.home


def test_a_job_for_which_there_is_no_memory_waits_with_its_numbers_until_there_is(
    registry: Registry, home: Path
) -> None:
    with registry.transaction() as tx:
        add_queued_job(tx)
    full = context_of(registry, home=home, reserve_bytes=FULL)
    for _ in range(2):
        with admission.to_train(full) as seen:
            assert seen is None
    with registry.reading() as tx:
        assert "job-aaaaaa waits: cpu has" in hosts.standstill(tx)
        assert "1000000.0 GB are needed" in hosts.standstill(tx)
        assert len(tx.find(Event, subject_id=full.host)) == 1  # said once, not at every bell
    with admission.to_train(context_of(registry, home=home, reserve_bytes=0)) as seen:
        assert seen is not None
        assert seen.job.id == "job-aaaaaa"
    with registry.reading() as tx:
        assert hosts.standstill(tx) == ""


def test_where_nothing_waits_nothing_is_in_the_way(registry: Registry, home: Path) -> None:
    with admission.to_train(context_of(registry, home=home, reserve_bytes=FULL)) as seen:
        assert seen is None
    with registry.reading() as tx:
        assert hosts.standstill(tx) == ""


def test_who_is_rung_before_the_row_is_written_finds_it_all_the_same(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_seconds: float) -> None:
        with registry.transaction() as tx:
            add_queued_job(tx)

    monkeypatch.setattr(admission.time, "sleep", write)
    context = context_of(registry, home=home, reserve_bytes=0)
    with admission.to_train(context, rung_for="job-aaaaaa") as seen:
        assert seen is not None
        assert seen.job.id == "job-aaaaaa"


def test_a_row_that_never_comes_is_not_waited_for_long(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(admission.time, "monotonic", lambda: next(now) * admission.ROW_WAIT_SECONDS / 3)
    monkeypatch.setattr(admission.time, "sleep", lambda _seconds: None)
    context = context_of(registry, home=home, reserve_bytes=0)
    with admission.to_train(context, rung_for="job-nowhere") as seen:
        assert seen is None
    assert 3 <= next(now) <= 6


def test_a_job_that_is_written_and_may_not_begin_is_not_waited_for(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission.time, "sleep", lambda _seconds: pytest.fail("waited"))
    context = context_of(registry, home=home, reserve_bytes=0)
    with registry.transaction() as tx:
        add_queued_job(tx, not_before_at=registry.clock() + timedelta(hours=1))
    with admission.to_train(context, rung_for="job-aaaaaa") as seen:
        assert seen is None


def test_only_the_job_that_the_device_was_judged_for_is_claimed(registry: Registry, home: Path) -> None:
    context = context_of(registry, home=home, reserve_bytes=0)
    with registry.transaction() as tx:
        add_queued_job(tx)
    with admission.to_train(context) as seen:
        with registry.transaction() as tx:
            add_queued_job(tx, id="job-urgent", priority="high")
        assert claim(registry, settings=context.settings, holder="w", seen=seen) is None
    with admission.to_train(context) as seen:
        claimed = claim(registry, settings=context.settings, holder="w", seen=seen)
    assert claimed is not None
    assert claimed[0].id == "job-urgent"


BUSY = (DeviceProcess(pid=1, name="stranger", num_bytes=10**9),)


def test_all_cards_of_a_job_are_held_and_one_that_is_busy_makes_it_wait(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = (FakeDevice(), FakeDevice(name="gpu-1"))
    monkeypatch.setattr(admission, "open_devices", lambda _wish, *, count: cards[:count])
    training = {"device": "cpu", "num_processes": 2}
    settings = load_settings(home=home, guard={"reserve_bytes": 0}, training=training)
    context = Context(settings=settings, registry=registry, celery=app)
    with registry.transaction() as tx:
        add_queued_job(tx)
    cards[1].processes = BUSY
    with admission.to_train(context) as seen:
        assert seen is None
    with registry.reading() as tx:
        assert "gpu-1 is used by process 1 (stranger" in hosts.standstill(tx)
    cards[1].processes = ()
    with admission.to_train(context) as seen:
        assert seen is not None
        locks = {path.name: path.read_text() for path in (home / "run" / "devices").iterdir()}
        assert sorted(locks) == ["gpu-0.lock", "gpu-1.lock"]
        assert all('"subject":"job-aaaaaa"' in text for text in locks.values())


@pytest.mark.parametrize(("kind", "num_shares"), [("cpu", 2), ("cuda", 1)])
def test_a_device_must_have_room_for_every_process_that_is_on_it(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, num_shares: int
) -> None:
    asked: list[Need] = []
    monkeypatch.setattr(admission, "read_shape", lambda _path: make_shape())
    monkeypatch.setattr(admission, "kind_of", lambda _device: kind)
    monkeypatch.setattr(admission, "_hold", lambda *_args, need, devices: asked.append(need))
    with registry.transaction() as tx:
        add_queued_job(tx)
    for num_processes in (1, 2):
        training = {"device": "cpu", "num_processes": num_processes, "overlap_writing": "off"}
        settings = load_settings(home=home, training=training)
        context = Context(settings=settings, registry=registry, celery=app)
        with admission.to_train(context) as seen:
            assert seen is not None
    alone, together = asked
    assert together.least_bytes == num_shares * alone.least_bytes > 0
    # Each has half of the batch, but weights and moments of its own.
    assert num_shares / 2 * alone.num_bytes < together.num_bytes <= num_shares * alone.num_bytes


@pytest.mark.parametrize(
    ("training", "kind", "expected"),
    [
        ({}, "cpu", ("cpu", "float32", False, True)),
        ({}, "cuda", ("cuda", "bfloat16", True, False)),
        ({"gradient_checkpointing": "on"}, "cpu", ("cpu", "float32", True, True)),
        ({"gradient_checkpointing": "off"}, "cuda", ("cuda", "bfloat16", False, False)),
        ({"overlap_writing": "off"}, "cpu", ("cpu", "float32", False, False)),
        ({"num_processes": 2}, "cpu", ("cpu", "float32", False, False)),
    ],
)
def test_what_is_set_decides_how_a_step_is_estimated(
    settings: Settings, training: dict[str, Any], kind: Any, expected: tuple[object, ...]
) -> None:
    found = load_settings(home=settings.home, training=training).training
    mode = admission.training_mode(found, kind=kind)
    assert (mode.device, mode.arithmetic, mode.checkpoints_gradients, mode.copies_state) == expected


@pytest.mark.parametrize(
    ("training", "num_shards"),
    [
        ({}, 1),
        ({"parallel": "fsdp"}, 1),
        ({"num_processes": 2}, 1),
        ({"num_processes": 2, "parallel": "ddp"}, 1),
        ({"num_processes": 2, "parallel": "fsdp"}, 2),
    ],
)
def test_processes_that_keep_parts_of_a_model_are_its_shards(
    settings: Settings, training: dict[str, Any], num_shards: int
) -> None:
    found = load_settings(home=settings.home, training=training).training
    assert admission.training_mode(found, kind="cuda").num_shards == num_shards


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_job_in_parts_asks_for_less_than_one_of_whole_models_but_for_more_than_one_process(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    asked: list[Need] = []
    wide = make_shape().changed(hidden_size=2048, intermediate_size=6144, num_parameters=1_720_574_976)
    monkeypatch.setattr(admission, "read_shape", lambda _path: wide)
    monkeypatch.setattr(admission, "kind_of", lambda _device: kind)
    monkeypatch.setattr(admission, "_hold", lambda *_args, need, devices: asked.append(need))
    with registry.transaction() as tx:
        add_queued_job(tx)
    for parallel in ("ddp", "fsdp"):
        training = {"device": "cpu", "num_processes": 2, "parallel": parallel}
        context = Context(settings=load_settings(home=home, training=training), registry=registry, celery=app)
        with admission.to_train(context) as seen:
            assert seen is not None
    whole, parts = asked
    assert whole.num_bytes / 2 < parts.num_bytes < whole.num_bytes
    assert whole.least_bytes / 2 < parts.least_bytes < whole.least_bytes


@pytest.mark.parametrize(("reserve_bytes", "is_free"), [(FULL, False), (0, True)])
def test_an_evaluation_is_told_why_it_cannot_begin(
    registry: Registry, home: Path, reserve_bytes: int, is_free: bool
) -> None:
    request = EvaluationRequest(
        evaluation_id="eval-1",
        checkpoint_id="base-aaaaaa",
        model=ArtifactReference(path="nowhere", sha256=SHA),
        suite_id="suite-1",
        suite=ArtifactReference(path="suite.jsonl", sha256=SHA),
        settings=GenerationSettings(),
        device="cpu",
    )
    context = context_of(registry, home=home, reserve_bytes=reserve_bytes)
    with admission.to_evaluate(context, request) as obstacle:
        assert (obstacle == "") is is_free
