"""A registry that is away for a moment costs a run nothing; one that stays away ends it without a word."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from registry import commands
from registry.errors import RegistryUnavailable
from registry.records import Checkpoint, Event, TrainingJob
from registry.states import Command, JobState
from registry.store import Registry, Transaction
from registry.testing import ManualClock, add_queued_job, make_checkpoint, make_registry
from trainer.messages import Failed
from workers.runner import TrainingRun, claim
from workers.testing import FakeChild, Line, finished, progress, saved

Start = Callable[..., TrainingRun]
LEASE_SECONDS = 60


class Moody:
    """A registry that does not answer the calls of these numbers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.clock = registry.clock
        self.num_calls = 0
        self.away: range = range(0)

    def leave(self, *, num_calls: int) -> None:
        """The next so many calls fail."""
        self.away = range(self.num_calls, self.num_calls + num_calls)

    @contextmanager
    def transaction(self, **options: bool) -> Iterator[Transaction]:
        self._count()
        with self._registry.transaction(**options) as tx:
            yield tx

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        self._count()
        with self._registry.reading() as tx:
            yield tx

    def _count(self) -> None:
        self.num_calls += 1
        if self.num_calls - 1 in self.away:
            raise RegistryUnavailable("database is locked")


class Seconds:
    """Monotonic seconds that pass in sleep only."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def moody(registry: Registry) -> Moody:
    return Moody(registry)


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def away(start: Start, moody: Moody, seconds: Seconds) -> Start:
    """A run on the moody registry; nothing really sleeps."""

    def make(child: FakeChild, **options: Any) -> TrainingRun:
        return start(child, **{"registry": moody, "monotonic": seconds, "sleep": seconds.sleep, **options})

    return make


def job_of(registry: Registry) -> TrainingJob:
    with registry.reading() as tx:
        return tx.get(TrainingJob, "job-aaaaaa")


def steps_of(registry: Registry) -> list[int]:
    with registry.reading() as tx:
        return [one.step for one in tx.find(Checkpoint, job_id="job-aaaaaa")]


def silence() -> None:
    """The trainer says nothing: the run looks around."""


def whole_run(directory: Path) -> list[Line]:
    return [progress(5), saved(5, path=directory), progress(10), saved(10, path=directory, is_final=True)]


@pytest.mark.parametrize("num_missed", [1, 3])
def test_whichever_of_its_calls_are_not_answered_a_healthy_run_succeeds(
    settings: Settings, tmp_path: Path, num_missed: int
) -> None:
    number, num_calls = 0, 1
    while number < num_calls:
        directory = tmp_path / str(number)
        directory.mkdir()
        moody, registry = _run_without(range(number, number + num_missed), settings=settings, home=directory)
        num_calls = max(num_calls, moody.num_calls)
        assert (job_of(registry).state, job_of(registry).attempts) == (JobState.SUCCEEDED, 0), number
        assert job_of(registry).final_checkpoint_id == "ckpt-aaaaaa-00000010"
        assert steps_of(registry) == [5, 10], number
        number += 1
    assert number > 8


def _run_without(away: range, *, settings: Settings, home: Path) -> tuple[Moody, Registry]:
    registry, seconds = make_registry(home), Seconds()
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
        add_queued_job(tx)
    claimed = claim(registry, settings=settings, holder="worker")
    assert claimed is not None
    moody = Moody(registry)
    moody.away = away

    def beat() -> None:
        seconds.sleep(settings.training.heartbeat_seconds)

    def announce() -> None:
        with moody.transaction():
            pass

    TrainingRun(
        job=claimed.job,
        lease=claimed.lease,
        registry=moody,  # type: ignore[arg-type]
        settings=settings,
        actor="worker",
        should_stop=lambda: False,
        on_start=announce,
        on_checkpoint=announce,
        take_signals=announce,
        start_child=FakeChild([beat, *whole_run(home), beat, finished()]),
        monotonic=seconds,
        sleep=seconds.sleep,
    ).run()
    return moody, registry


def test_a_checkpoint_that_could_not_be_told_is_told_as_soon_as_the_registry_answers(
    registry: Registry, away: Start, moody: Moody, seconds: Seconds, tmp_path: Path
) -> None:
    seen: list[list[int]] = []
    child = FakeChild(
        [
            silence,
            lambda: moody.leave(num_calls=1),
            saved(5, path=tmp_path),
            lambda: seen.append(steps_of(registry)),
            lambda: seconds.sleep(1),
            lambda: seen.append(steps_of(registry)),
            finished(),
        ]
    )
    away(child, command_seconds=1000.0).run()
    assert seen == [[], [5]]


def test_what_follows_a_checkpoint_is_asked_once_it_was_told(
    away: Start, moody: Moody, seconds: Seconds, tmp_path: Path
) -> None:
    announced: list[float] = []
    child = FakeChild(
        [
            silence,
            lambda: moody.leave(num_calls=1),
            saved(5, path=tmp_path),
            lambda: seconds.sleep(1),
            finished(),
        ]
    )
    away(child, command_seconds=1000.0, on_checkpoint=lambda: announced.append(seconds.now)).run()
    assert announced == [1.0]


@pytest.mark.parametrize(
    ("lines", "command", "state", "num_attempts"),
    [
        ([finished()], None, JobState.SUCCEEDED, 0),
        ([finished("stopped", step=3)], None, JobState.QUEUED, 0),
        ([finished("paused", step=3)], Command.PAUSE, JobState.PAUSED, 0),
        ([Failed(kind="data", message="no")], None, JobState.REJECTED, 0),
        ([Failed(kind="diverged", message="no")], None, JobState.FAILED, 1),
        ([], None, JobState.QUEUED, 1),
    ],
    ids=["succeeded", "put back", "obeyed", "rejected", "failed", "died"],
)
def test_an_end_is_told_until_the_registry_answers(
    registry: Registry,
    away: Start,
    moody: Moody,
    seconds: Seconds,
    lines: list[Line],
    command: Command | None,
    state: JobState,
    num_attempts: int,
) -> None:
    def ask() -> None:
        if command is not None:
            with registry.transaction() as tx:
                commands.give(tx, job_id="job-aaaaaa", command=command, actor="me", reason="a test")

    child = FakeChild([ask, lambda: moody.leave(num_calls=50), *lines], return_code=-9)
    away(child).run()
    assert (job_of(registry).state, job_of(registry).attempts) == (state, num_attempts)
    assert 40 <= seconds.now < LEASE_SECONDS


def test_an_end_that_cannot_be_told_before_the_lease_is_over_is_not_told(
    registry: Registry, away: Start, moody: Moody, seconds: Seconds, clock: ManualClock
) -> None:
    child = FakeChild([progress(10), lambda: moody.leave(num_calls=10_000), finished()])
    away(child).run()
    assert job_of(registry).state is JobState.RUNNING
    assert child.was_ended
    assert seconds.now == LEASE_SECONDS


def test_a_holder_whose_lease_ran_out_meanwhile_tells_nothing(
    registry: Registry, away: Start, moody: Moody, clock: ManualClock, tmp_path: Path
) -> None:
    child = FakeChild([lambda: moody.leave(num_calls=3), lambda: clock.advance(61), *whole_run(tmp_path)])
    away(child).run()
    assert job_of(registry).state is JobState.RUNNING
    assert steps_of(registry) == []


def test_a_lease_that_cannot_be_renewed_until_it_is_over_ends_the_trainer(
    registry: Registry, away: Start, moody: Moody, seconds: Seconds
) -> None:
    heard: list[float] = []

    def wait() -> None:
        seconds.sleep(7)
        heard.append(seconds.now)

    away(FakeChild([lambda: moody.leave(num_calls=10_000), *[wait] * 12, finished()])).run()
    assert heard[-1] == 63
    assert job_of(registry).state is JobState.RUNNING


def test_a_job_is_not_without_a_parent_because_the_registry_was_away(
    registry: Registry, away: Start, moody: Moody
) -> None:
    run = away(FakeChild([progress(10), finished()]))
    moody.leave(num_calls=5)
    run.run()
    assert (job_of(registry).state, job_of(registry).problems) == (JobState.SUCCEEDED, ())


def test_warnings_and_checkpoints_are_told_once_however_often_it_was_tried(
    registry: Registry, away: Start, moody: Moody, tmp_path: Path
) -> None:
    lines = [lambda: moody.leave(num_calls=4), *whole_run(tmp_path), finished()]
    away(FakeChild(lines)).run()
    with registry.reading() as tx:
        added = [event.subject_id for event in tx.find(Event, kind="Checkpoint") if "step" in event.reason]
    assert added == ["ckpt-aaaaaa-00000005", "ckpt-aaaaaa-00000010"]
