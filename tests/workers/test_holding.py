"""A drained intelligence host stays drained, whatever is restarted there."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from config.settings import Settings
from workers import holding
from workers.contracts import QUEUES

NODE = "intelligence@mars"


class Worker:
    """What a command and a starting worker are given: an application, and a consumer that obeys at once."""

    def __init__(self) -> None:
        self.app = Celery("test", set_as_current=False)
        self.app.conf.task_queues = [Queue(name) for name in QUEUES]
        self.app.amqp.queues.select(holding.QUEUES)
        self.consumer = self

    @property
    def consumes(self) -> set[str]:
        return set(self.app.amqp.queues.consume_from)

    def call_soon(self, what: Callable[..., object], *args: Any) -> None:
        what(*args)

    def cancel_task_queue(self, name: str) -> None:
        self.app.amqp.queues.deselect(name)

    def add_task_queue(self, name: str) -> None:
        self.app.amqp.queues.select_add(self.app.amqp.queues[name])

    def start(self, node: str = NODE) -> None:
        holding.stay_held(sender=node, instance=SimpleNamespace(app=self.app))


@pytest.fixture(autouse=True)
def _home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "load_settings", lambda: settings)


def test_a_held_worker_takes_nothing_also_after_it_is_started_again() -> None:
    worker, again = Worker(), Worker()
    holding.hold(worker)
    assert worker.consumes == set()
    again.start()
    assert again.consumes == set()


def test_a_released_worker_takes_work_also_after_it_is_started_again() -> None:
    held, again = Worker(), Worker()
    holding.hold(held)
    again.start()
    holding.release(again)
    assert again.consumes == {"evaluation", "intelligence"}
    later = Worker()
    later.start()
    assert later.consumes == {"evaluation", "intelligence"}


def test_being_told_again_changes_nothing() -> None:
    worker = Worker()
    for tell, consumes in ((holding.hold, set()), (holding.release, {"evaluation", "intelligence"})):
        for _ in range(3):
            tell(worker)
            assert worker.consumes == consumes


def test_another_worker_of_the_same_home_is_not_held() -> None:
    holding.hold(Worker())
    train = Worker()
    train.app.amqp.queues.select(["high"])
    train.start("train@mars")
    assert train.consumes == {"high"}


def test_a_note_that_cannot_be_written_holds_the_worker_all_the_same(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.paths.run.rmdir()
    settings.paths.run.write_text("in the way")
    worker = Worker()
    with pytest.raises(OSError, match="run"):
        holding.hold(worker)
    assert worker.consumes == set()
