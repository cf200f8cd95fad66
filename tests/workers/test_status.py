"""What `tandem status` says of parts that answer nothing."""

from datetime import timedelta

import pytest

from config.settings import Settings
from registry import asks, commands, queue
from registry.records import TrainingJob
from registry.states import Command, Priority
from registry.status_files import PartStatus
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job
from workers.app import app
from workers.context import Context
from workers.status import MAX_JOBS, beat_status, job_line, recent_jobs, system_status


def beat(registry: Registry) -> PartStatus:
    with registry.reading() as tx:
        return beat_status(tx, sweep_seconds=30)


def test_beat_is_unknown_before_its_first_tick_up_while_it_ticks_and_down_when_it_fell_silent(
    registry: Registry, clock: ManualClock
) -> None:
    assert beat(registry).state == "unknown"
    with registry.transaction() as tx:
        asks.put(tx, kind="tick", subject_id="sweep")
    clock.advance(80)
    assert (beat(registry).state, beat(registry).detail) == ("up", "last tick 80 s ago")
    clock.advance(10)
    assert beat(registry).state == "down"


def test_a_jobs_line_shows_no_speed_once_it_ended(registry: Registry, clock: ManualClock) -> None:
    with registry.transaction() as tx:
        job: TrainingJob = add_queued_job(tx)
    line = job_line(job, now=clock())
    assert (line.state, line.step, line.tokens_per_second) == ("queued", None, None)


@pytest.mark.integration
def test_without_redis_server_or_registry_everything_is_down_or_unknown_and_nothing_raises(
    settings: Settings, tmp_path: object
) -> None:
    nowhere = Registry(f"sqlite:///{tmp_path}/no/such/place/tandem.db")
    quiet = settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"port": 1}),
            "server": settings.server.model_copy(update={"port": 1}),
            "flower": settings.flower.model_copy(update={"port": 1}),
        }
    )
    found = system_status(Context(settings=quiet, registry=nowhere, celery=app))
    states = {part.name: part.state for part in found.parts}
    assert states.pop("registry") == states.pop("redis") == "down"
    assert states.pop("server") == states.pop("flower") == "down"
    assert set(states.values()) == {"unknown"}
    assert found.training.status == "unknown"


def test_a_job_that_is_paused_or_runs_is_listed_however_many_came_after_it(registry: Registry) -> None:
    with registry.transaction() as tx:
        for name in ("job-paused", "job-running"):
            add_queued_job(tx, id=name)
        commands.give(tx, job_id="job-paused", command=Command.PAUSE, actor="test", reason="")
        assert queue.claim_next(tx, queues=tuple(Priority), holder="w", seconds=60)
        for number in range(MAX_JOBS):
            later = tx.now + timedelta(seconds=1 + number)
            add_queued_job(tx, id=f"job-{number:03d}", submitted_at=later)
        listed = [job.id for job in recent_jobs(tx)]
    assert listed[:2] == ["job-paused", "job-running"]
    assert len(listed) == MAX_JOBS + 2
