"""A watched job: every change once, its end measured from what was seen, an outage survived."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from registry import queue
from registry.errors import RegistryUnavailable
from registry.progress import TimeLeft
from registry.records import JobProgress, TrainingJob
from registry.states import JobState, Priority
from registry.status_files import JobStatus
from registry.store import Registry
from registry.testing import ManualClock, add_queued_job
from tasks import watching
from tasks.watching import JobWatcher, LineView, Watch, detail, duration, progress_view
from workers.errors import NoAnswer


class Life:
    """Does its next act at each sleep of the watch."""

    def __init__(self, registry: Registry, clock: ManualClock) -> None:
        self.registry = registry
        self.clock = clock
        self.acts: list[Callable[[], object]] = []
        self.seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.acts:
            self.acts.pop(0)()

    def watch(self, **options: Any) -> Watch:
        watcher = JobWatcher(self.registry, "job-aaaaaa", monotonic=lambda: self.seconds)
        return Watch(watcher, sleep=self.sleep, monotonic=lambda: self.seconds, **options)

    def claim(self) -> None:
        with self.registry.transaction() as tx:
            assert queue.claim_next(tx, queues=tuple(Priority), holder="w", seconds=60)

    def report(self, step: int) -> None:
        self.clock.advance(10)
        with self.registry.transaction() as tx:
            job = tx.get(TrainingJob, "job-aaaaaa")
            progress = JobProgress(
                step=step,
                num_steps=100,
                epoch=0,
                loss=1.5,
                tokens_per_second=200,
                num_tokens=step,
                reported_at=tx.now,
            )
            tx.update(job, progress=progress)

    def end(self, state: JobState) -> None:
        with self.registry.transaction() as tx:
            tx.transition(tx.get(TrainingJob, "job-aaaaaa"), to=state, actor="w", finished_at=tx.now)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def life(tmp_path: Any, clock: ManualClock) -> Life:
    from registry.testing import make_registry

    registry = make_registry(tmp_path, clock=clock)
    with registry.transaction() as tx:
        add_queued_job(tx)
    return Life(registry, clock)


def test_each_change_is_told_once_and_the_last_one_is_final(life: Life) -> None:
    nothing = lambda: None  # noqa: E731
    life.acts = [
        nothing,
        life.claim,
        nothing,
        lambda: life.report(10),
        nothing,
        lambda: life.end(JobState.SUCCEEDED),
    ]
    told = [(watched.line.state, watched.line.step) for watched in life.watch().changes()]
    assert told == [("queued", None), ("running", None), ("running", 10), ("succeeded", 10)]


def test_the_end_is_unknown_before_two_reports_and_has_an_error_from_the_third_on(life: Life) -> None:
    life.acts = [life.claim, *(lambda step=step: life.report(step) for step in (10, 20, 32))]
    life.acts += [lambda: life.end(JobState.SUCCEEDED)]
    etas = [watched.line.eta for watched in life.watch().changes()]
    assert etas[:3] == [None, None, None]
    assert etas[3] is not None
    assert (etas[3].seconds, etas[3].low_seconds) == (80, None)
    assert etas[4] is not None
    assert etas[4].low_seconds is not None
    assert etas[5] is None


def test_what_the_runner_measured_is_told_until_two_reports_were_seen(life: Life) -> None:
    def report(step: int) -> None:
        life.report(step)
        with life.registry.transaction() as tx:
            job = tx.get(TrainingJob, "job-aaaaaa")
            assert job.progress is not None
            left = TimeLeft(seconds=300, variance=25, num_samples=9)
            tx.update(job, progress=job.progress.changed(left=left))

    life.acts = [life.claim, lambda: report(10), lambda: report(20), lambda: life.end(JobState.SUCCEEDED)]
    etas = [watched.line.eta for watched in life.watch().changes()]
    assert etas[2] is not None
    assert (etas[2].seconds, etas[2].num_samples) == (300, 9)
    assert etas[2].low_seconds is not None
    assert etas[3] is not None
    assert etas[3].seconds == 80


def test_a_waiting_job_is_told_its_place_and_why_its_start_is_unknown(life: Life) -> None:
    first = next(life.watch().changes()).line
    assert first.place == 1
    assert detail(first) == "place 1  begins in unknown (nothing runs, so nothing says when it will begin)"


def test_a_timeout_names_the_state_and_the_time(life: Life) -> None:
    with pytest.raises(NoAnswer, match="job-aaaaaa is still queued after 3 s"):
        list(life.watch(timeout_seconds=3).changes())


def test_a_registry_that_is_away_for_a_moment_is_no_end(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    look, num_looks = JobWatcher.look, 0

    def sometimes(watcher: JobWatcher) -> object:
        nonlocal num_looks
        num_looks += 1
        if 2 <= num_looks <= 20:
            raise RegistryUnavailable("locked")
        return look(watcher)

    monkeypatch.setattr(JobWatcher, "look", sometimes)
    life.acts = [life.claim, lambda: life.end(JobState.SUCCEEDED)]
    assert [watched.line.state for watched in life.watch().changes()] == ["queued", "succeeded"]


def test_a_registry_that_stays_away_is_an_error_after_a_minute(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = life.watch(poll_seconds=10).changes()
    next(changes)

    def away(_: JobWatcher) -> None:
        raise RegistryUnavailable("gone")

    monkeypatch.setattr(JobWatcher, "look", away)
    with pytest.raises(RegistryUnavailable):
        next(changes)
    assert watching.OUTAGE_SECONDS < life.seconds <= watching.OUTAGE_SECONDS + 10


class Screen(io.StringIO):
    """Standard error that may be a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


LINE = JobStatus(
    id="job-a", name="[words]", state="running", priority="high", step=5, num_steps=10, loss=1.0,
    tokens_per_second=123.4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("is_terminal", "show", "words"),
    [
        (True, None, "step 5/10"),
        (True, True, "step 5/10"),
        (True, False, ""),
        (False, None, ""),
        (False, True, "job-a running  step 5/10  loss 1.000  123 tokens/s  ETA unknown\n"),
    ],
)
def test_a_bar_is_drawn_on_a_terminal_only_and_lines_elsewhere_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, show: bool | None, words: str
) -> None:
    screen = Screen(is_terminal=is_terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stderr", screen)
    with progress_view(show=show) as view:
        if view is not None:
            view.show(LINE)
    assert words in screen.getvalue()
    assert bool(screen.getvalue()) == bool(words)


def test_a_line_of_the_view_is_flushed_at_once() -> None:
    stream = io.StringIO()
    LineView(stream).show(LINE.changed(state="failed", reason="[bold] is no markup"))
    assert stream.getvalue() == "job-a failed  step 5/10  loss 1.000  [bold] is no markup\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(45, "45 s"), (300, "5 min"), (7200, "2.0 h"), (3 * 86400, "3.0 d")]
)
def test_a_duration_is_said_with_its_error(seconds: float, words: str) -> None:
    from workers.forecast import Span, forecast

    clock = ManualClock()
    assert duration(forecast(Span(seconds, 0.0, 5), now=clock())) == f"{words} ({words} to {words})"
    assert duration(forecast(Span(seconds, None, 1), now=clock())) == f"{words} (error unknown)"
    assert duration(None) == "unknown"
