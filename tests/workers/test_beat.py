"""The loops keep their pace, whatever becomes of the host's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from workers.beat import SteadyScheduler

EVERY = {"sweep": {"task": "sweep", "schedule": timedelta(seconds=2)}}
SCAN = {"scan": {"task": "scan", "schedule": timedelta(seconds=5)}}


class Host:
    """A host's two clocks, and what its beat sent."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.steady = 500.0
        self.sent: list[str] = []

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class Beat(SteadyScheduler):
    """Remembers what is due instead of sending it."""

    host: Host

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self.host.sent.append(entry.name)

    @property
    def producer(self) -> Any:
        return None


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def beat(host: Host) -> Beat:
    app = Celery("beat", set_as_current=False)
    app.conf.beat_schedule = EVERY | SCAN
    app.now = lambda: datetime.fromtimestamp(host.wall, tz=UTC)  # type: ignore[method-assign]
    Beat.host = host
    return Beat(app, wall=lambda: host.wall, steady=lambda: host.steady)


def sent_in(beat: Beat, host: Host, *, seconds: int) -> list[str]:
    host.sent.clear()
    for _ in range(seconds * 10):
        while beat.tick() == 0:
            pass
        host.pass_(0.1)
    return sorted(host.sent)


def test_every_loop_ticks_at_its_interval(beat: Beat, host: Host) -> None:
    assert sent_in(beat, host, seconds=12) == ["scan"] * 2 + ["sweep"] * 5


@pytest.mark.parametrize("jump", [-3600, -30, 30, 3600])
def test_no_loop_is_silent_because_the_clock_was_set(beat: Beat, host: Host, jump: float) -> None:
    sent_in(beat, host, seconds=7)
    host.wall += jump
    assert sent_in(beat, host, seconds=12) == ["scan"] * 2 + ["sweep"] * 5
