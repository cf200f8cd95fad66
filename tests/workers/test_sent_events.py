"""What was sent is told of at once, or behind the block."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from celery.events.dispatcher import EventDispatcher
from kombu.exceptions import OperationalError

from workers.sent_events import PatientDispatcher, told_at_the_end

Told = list[tuple[str, str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Celery would publish: the message's name, and by which producer."""
    heard: Told = []

    def publish(_self: object, _type: str, fields: dict[str, Any], producer: str, **_options: Any) -> None:
        heard.append((fields["name"], producer))

    monkeypatch.setattr(EventDispatcher, "publish", publish)
    return heard


def application(*, error: Exception | None = None) -> Any:
    @contextmanager
    def acquire(*, block: bool) -> Iterator[str]:
        assert block
        if error is not None:
            raise error
        yield "another"

    return SimpleNamespace(producer_pool=SimpleNamespace(acquire=acquire))


def send(name: str) -> None:
    dispatcher = object.__new__(PatientDispatcher)  # making one in full needs a connection
    dispatcher.publish("task-sent", {"name": name}, "its own", retry=True)


def test_outside_of_a_block_it_is_told_of_at_once(told: Told) -> None:
    send("one")
    assert told == [("one", "its own")]


def test_inside_it_is_told_of_at_the_end_in_order_by_another_producer(told: Told) -> None:
    with told_at_the_end(application()):
        send("one")
        send("two")
        assert told == []
    assert told == [("one", "another"), ("two", "another")]
    send("three")
    assert told[2:] == [("three", "its own")]


def test_it_is_told_of_where_the_block_fails_too(told: Told) -> None:
    with pytest.raises(ValueError, match="refused"), told_at_the_end(application()):
        send("one")
        raise ValueError("refused")
    assert told == [("one", "another")]


def test_that_nobody_can_be_told_is_no_error(told: Told) -> None:
    with told_at_the_end(application(error=OperationalError("away"))):
        send("one")
    assert told == []


def test_where_nothing_was_sent_no_producer_is_asked_for(told: Told) -> None:
    with told_at_the_end(application(error=OperationalError("away"))):
        pass
    assert told == []
