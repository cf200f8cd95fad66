"""How a part shows that it is up, also while the part that it is asked through is in trouble."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError

from config.settings import Settings
from workers.stack.parts import stack_parts, worker_part


class Control:
    """Answers a ping, or raises."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def ping(self, *, timeout: float) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def is_ready(settings: Settings, answer: Any) -> bool:
    celery = Celery("parts", set_as_current=False)
    celery.__dict__["control"] = Control(answer)
    return worker_part(settings, celery=celery, name="train", queues=("high",)).is_ready()


def test_a_worker_is_up_once_it_answers_by_its_own_name(settings: Settings) -> None:
    mine = f"train@{socket.gethostname()}"
    assert is_ready(settings, [{"control@host": {"ok": "pong"}}, {mine: {"ok": "pong"}}])
    assert not is_ready(settings, [{"control@host": {"ok": "pong"}}])
    assert not is_ready(settings, [{f"{mine}-2": {"ok": "pong"}}])
    assert not is_ready(settings, None)


@pytest.mark.parametrize("error", [OutOfMemoryError(), OperationalError(), ConnectionResetError()])
def test_a_redis_in_trouble_does_not_bring_the_supervisor_down(settings: Settings, error: Exception) -> None:
    assert not is_ready(settings, error)


def test_a_named_host_gives_its_workers_its_name(settings: Settings) -> None:
    named = settings.model_copy(update={"name": "intel-2"})
    part = worker_part(named, celery=Celery("parts", set_as_current=False), name="train", queues=("high",))
    assert part.command[part.command.index("-n") + 1] == "train@intel-2"
    assert is_ready(named, [{"train@intel-2": {"ok": "pong"}}])
    assert not is_ready(named, [{f"train@{socket.gethostname()}": {"ok": "pong"}}])


def test_a_worker_that_trains_has_time_to_write_down_what_its_trainer_saved(settings: Settings) -> None:
    celery = Celery("parts", set_as_current=False)
    train = worker_part(settings, celery=celery, name="train", queues=("high",))
    control = worker_part(settings, celery=celery, name="control", queues=("control",))
    # The runner's own count begins later, and it writes to the registry after it.
    assert train.stop_seconds >= settings.training.stop_grace_seconds + 15
    assert control.stop_seconds == 15


def test_a_pause_finds_a_control_process_that_is_free_beside_two_transfers_and_a_large_file(
    settings: Settings,
) -> None:
    parts = {part.name: part for part in stack_parts(settings, celery=Celery("parts", set_as_current=False))}
    command = parts["control"].command
    assert int(command[command.index("-c") + 1]) > 3
    assert [
        part.command[part.command.index("-c") + 1] for part in (parts["train"], parts["intelligence"])
    ] == [
        "1",
        "1",
    ]
