"""What Flower is told of a message that was sent, when there is time for it.

Celery publishes `task-sent` right behind each message, which takes half as long again. Whoever has something
to write that the receiver waits for does that first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from celery import Celery
from celery.events.dispatcher import EventDispatcher
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

Publish = Callable[[Any], None]  # by a producer

_untold: ContextVar[list[Publish] | None] = ContextVar("untold", default=None)


@contextmanager
def told_at_the_end(application: Celery) -> Iterator[None]:
    """What is sent meanwhile is told of behind the block, also where that fails. Telling raises nothing."""
    untold: list[Publish] = []
    token = _untold.set(untold)
    try:
        yield
    finally:
        _untold.reset(token)
        _tell(untold, application=application)


class PatientDispatcher(EventDispatcher):
    """Publishes at once, or behind the block of `told_at_the_end`."""

    def publish(  # type: ignore[override]  # the rest is handed on as it comes
        self,
        type: str,  # noqa: A002 - Celery's name
        fields: dict[str, Any],
        producer: Any,
        **options: Any,
    ) -> None:
        """As Celery's. Whose producer that is may send something else by then: another one is taken."""
        publish: Publish = partial(super().publish, type, fields, **options)
        untold = _untold.get()
        if untold is None:
            publish(producer)
        else:
            untold.append(publish)


def _tell(untold: list[Publish], *, application: Celery) -> None:
    if not untold:
        return
    try:
        with application.producer_pool.acquire(block=True) as producer:
            for publish in untold:
                publish(producer)
    except (OperationalError, RedisError, ConnectionError) as error:
        log.info("Flower does not hear of a message that was sent: %s", error)
