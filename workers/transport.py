"""A Redis transport that a broken message cannot end.

Celery hands a worker whatever lies in a queue's list. One entry that is no JSON, or JSON of another form,
raises in the worker's main process and ends it, with every task that runs there; a time limit that is no
number leaves it alive and deaf (celery 5.7). Here such a message is logged and dropped: what it asked for
stands in the registry, and is asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from queue import Empty
from typing import Annotated, Any

from celery.app.amqp import AMQP
from celery.worker import state
from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import redis
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat

from workers.contracts import QUEUES
from workers.sent_events import PatientDispatcher

log = logging.getLogger(__name__)

# What a message of another form than expected raises. Redis going away is none of these.
When = Annotated[AwareDatetime, Field(strict=False)]
BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class Envelope(BaseModel):
    """What Celery reads of a message before any code of ours does (its protocol 2)."""

    model_config = ConfigDict(strict=True, frozen=True)

    task: str
    id: str = Field(min_length=1, max_length=200)
    timelimit: list[PositiveFloat | None] | None = Field(default=None, min_length=2, max_length=2)
    retries: NonNegativeInt | None = None
    eta: When | None = None
    expires: When | None = None
    group: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    shadow: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    lang: str | None = None
    group_index: int | None = None
    replaced_task_nesting: NonNegativeInt | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    delivery_info: dict[str, Any] | None = None
    priority: int | None = None
    delivery_mode: int | None = None
    content_type: str
    content_encoding: str


class GuardedChannel(redis.Channel):
    """Drops what it cannot read, and what Celery cannot take."""

    _kept_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        """One client for as long as its pool lives: kombu makes one for each command, a quarter of a send."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # kombu's stubs lack it
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()  # type: ignore[misc]
        return self._kept_client

    def basic_consume(  # type: ignore[override]  # kombu passes them in two ways
        self, queue: str, no_ack: Any, callback: Callable[[Any], Any], *args: Any, **options: Any
    ) -> Any:
        """Consume a queue; a message at which `callback` fails is rejected for good."""

        def guarded(message: Any) -> Any:
            try:
                if queue in QUEUES:
                    Envelope.model_validate(_fields(message))
                return callback(message)
            except BROKEN as error:
                _tell(error, where=queue)
                _let_go(message)
                return None

        return super().basic_consume(queue, no_ack, guarded, *args, **options)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # kombu's stubs lack it
        except BROKEN as error:
            _tell(error, where="a queue")
            raise Empty from None

    def _receive_one(self, client: Any) -> Any:
        try:
            return super()._receive_one(client)  # type: ignore[misc]
        except BROKEN as error:
            _tell(error, where="the workers' own channel")
            raise Empty from None


class GuardedTransport(redis.Transport):
    """The Redis transport over such channels."""

    Channel = GuardedChannel


class _Guarded:
    """What a connection takes for Redis: the guarded transport. Its URL stays as it is."""

    def get_transport_cls(self) -> Any:
        found = super().get_transport_cls()  # type: ignore[misc]  # a connection's
        return GuardedTransport if found is redis.Transport else found


class _GuardedPooledConnection(_Guarded, PooledConnection):
    """One of those that messages are sent by."""


class _GuardedPool(ConnectionPool):
    """Makes connections of its own class, whatever the class of that which it was made from."""

    def new(self) -> Any:
        return _GuardedPooledConnection(self, **dict(self.connection._info(resolve=False)))


class GuardedConnection(_Guarded, Connection):
    """A connection over the guarded transport, and so is every one of its pool."""

    def Pool(self, limit: int | None = None, **options: Any) -> Any:  # noqa: N802 - kombu's name
        """At most so many connections."""
        return _GuardedPool(self, limit, **options)


class GuardedAMQP(AMQP):
    """Celery's messaging over such connections; it tells of what was sent when there is time."""

    Connection = GuardedConnection

    @cached_property
    def _event_dispatcher(self) -> PatientDispatcher:
        return PatientDispatcher(app=self.app, enabled=False)


def _fields(message: Any) -> dict[str, Any]:
    known = {"content_type": message.content_type, "content_encoding": message.content_encoding}
    return {**message.properties, **message.headers, **known}


def _let_go(message: Any) -> None:
    """Nothing may wait for it: a request that was reserved before it failed would hold a process for ever."""
    for request in list(state.reserved_requests):
        if request.message is message:
            state.task_ready(request)
    if not message.acknowledged:
        message.reject()


def _tell(error: Exception, *, where: str) -> None:
    log.error(
        "A message in %s was dropped, since it cannot be read (%s: %s). What is owed is asked again.",
        where,
        type(error).__name__,
        " ".join(str(error)[:200].split()),
    )
