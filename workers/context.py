"""What a task works with: settings, registry, clock, and a way to send messages. Made once a process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from celery import Celery

from config.settings import Settings, load_settings
from registry import leases
from registry.errors import RegistryUnavailable, StaleWrite
from registry.records import Lease, Record
from registry.store import Registry
from workers.allowance import Allowance
from workers.app import app
from workers.backoff import Backoff
from workers.errors import BrokerUnavailable
from workers.told import Told

log = logging.getLogger(__name__)

# An answer that cost work is offered for an hour or so.
DELIVERY = Backoff(first_seconds=1, cap_seconds=60)
MAX_DELIVERIES = 80


@dataclass(frozen=True)
class Message:
    """A task to send: its name, its request, and a queue where it is not the usual one.

    `expires_seconds` drops a message that nobody took until it is sent again.
    """

    task: str
    request: Record
    queue: str | None = None
    expires_seconds: float | None = None


@dataclass(frozen=True)
class Context:
    """Passed to every task function."""

    settings: Settings
    registry: Registry
    celery: Celery
    # A refresh looks at every job that waits: with a thousand, it would take longer than a short job.
    folder_time: Allowance = field(default_factory=lambda: Allowance(share=0.1, capacity_seconds=1.0))
    told: Told = field(default_factory=Told)
    # Of the message that is being handled, by which it is known should it come again.
    message_id: str | None = None

    @property
    def host(self) -> str:
        """This machine, as its workers are named."""
        return self.settings.host_name

    @property
    def actor(self) -> str:
        """Who writes: host and process, for the event log."""
        return f"{self.host}:{os.getpid()}"

    def send(self, message: Message) -> str:
        """Publish, and return the message's id; `BrokerUnavailable` where Redis is away."""
        options: dict[str, Any] = {} if message.queue is None else {"queue": message.queue}
        if message.expires_seconds is not None:
            options["expires"] = message.expires_seconds
        kwargs = message.request.model_dump(mode="json")
        sent = self.celery.send_task(message.task, kwargs=kwargs, **options)
        return str(sent.id)

    def ring(self, messages: Iterable[Message]) -> None:
        """Publish what the registry says is owed. A lost bell is no error: the sweep rings again."""
        for message in messages:
            try:
                self.send(message)
            except BrokerUnavailable as error:
                log.warning("%s was not sent; the sweep will send it: %s", message.task, error)
                return

    def deliver(self, message: Message, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Publish an answer that cost work: keep trying while Redis is away, for an hour at most."""
        for num_failures in range(1, MAX_DELIVERIES):
            try:
                self.send(message)
            except BrokerUnavailable as error:
                wait_seconds = DELIVERY.wait_seconds(num_failures=num_failures)
                log.warning("%s waits %.0f s for Redis: %s", message.task, wait_seconds, error)
                sleep(wait_seconds)
            else:
                return
        self.send(message)

    @contextmanager
    def holding(self, resource: str) -> Iterator[Lease | None]:
        """A lease for work of which there must be one at a time, renewed meanwhile; None if it is taken."""
        seconds = self.settings.training.lease_seconds
        with self.registry.transaction() as tx:
            lease = leases.acquire(tx, resource=resource, holder=self.actor, seconds=seconds)
        if lease is None:
            yield None
            return
        done = threading.Event()
        keeper = threading.Thread(target=self._renew, args=(lease, done), daemon=True)
        keeper.start()
        try:
            yield lease
        finally:
            done.set()
            keeper.join()
            with self.registry.transaction() as tx:
                leases.release(tx, lease)

    def _renew(self, lease: Lease, done: threading.Event) -> None:
        while not done.wait(self.settings.training.heartbeat_seconds):
            try:
                with self.registry.transaction() as tx:
                    leases.renew(tx, lease, seconds=self.settings.training.lease_seconds)
            except RegistryUnavailable as error:
                log.warning("%s could not be renewed: %s", lease.id, error)
            except StaleWrite:
                return  # every write of this holder is refused from here on


def open_context(settings: Settings) -> Context:
    """A context on these settings; nothing is opened until it is used."""
    return Context(settings=settings, registry=Registry(settings.database_url), celery=app)


def current_context() -> Context:
    """This process's context. A forked child gets its own: a database handle must not cross a fork."""
    return _context_of(os.getpid())


@lru_cache(maxsize=1)
def _context_of(_process_id: int) -> Context:
    return open_context(load_settings())
