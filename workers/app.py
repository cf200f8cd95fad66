"""The Celery application: `celery -A workers.app ...`.

Settings are read when Celery first needs them, not at import. Every message is checked against its
contract before it is sent, so that `celery call` refuses a misspelt task or argument at once.
"""

from __future__ import annotations

import math
import os
import time
from functools import lru_cache
from typing import Any

import click
from celery import Celery
from celery.loaders.app import AppLoader
from kombu.exceptions import OperationalError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from config.errors import SettingsError
from config.settings import load_settings
from workers import signing
from workers.celery_settings import celery_settings
from workers.contracts import TASKS, parse_request
from workers.errors import BrokerUnavailable, WorkerError

BROKER_SECONDS = 5
TRUSTED_SECONDS = 1.0  # for so long a Redis that took a message is not asked whether it is there


class SettingsLoader(AppLoader):
    """Gives Celery its configuration from tandem's settings."""

    def read_configuration(self, *_args: Any, **_options: Any) -> dict[str, Any]:
        """Read the settings; a wrong one ends the command with one sentence."""
        try:
            settings = load_settings()
            if settings.redis.signed:
                signing.enable(settings.paths.signing)
            return celery_settings(settings)
        except SettingsError as error:
            raise click.UsageError(str(error)) from None


class TandemCelery(Celery):
    """Celery that checks a request before it sends it, and says plainly that Redis is away."""

    amqp_cls = "workers.transport:GuardedAMQP"
    _answered_at = -math.inf  # by the monotonic clock: when Redis last took a message

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        """Check the arguments against the contract, then publish."""
        try:
            return self._send(name, *args, **options)
        except WorkerError as error:
            # `celery call` prints an error of click's without a traceback; everyone else gets ours.
            command = click.get_current_context(silent=True)
            if command is not None and command.info_name == "call":
                raise click.ClickException(str(error)) from None
            raise

    def _send(self, name: str, *args: Any, **options: Any) -> Any:
        kwargs = options.get("kwargs") or (args[1] if len(args) > 1 else None) or {}
        positional = options.get("args") or (args[0] if args else None) or ()
        parse_request(name, fields=kwargs, values=positional)
        options.setdefault("ignore_result", not TASKS[name].has_result)
        if (
            options.get("serializer") == "json"
        ):  # `celery call` says so by itself: whether to sign is a setting
            del options["serializer"]
        try:
            if not options["ignore_result"] or time.monotonic() - self._answered_at > TRUSTED_SECONDS:
                self._require_broker()
            sent = super().send_task(name, *args, **options)
            self._answered_at = time.monotonic()
            return sent
        except (OperationalError, RedisError, ConnectionError) as error:
            raise broker_unavailable(self, error=error) from None

    def _require_broker(self) -> None:
        """Ask Redis first: Celery would try three times, and its result backend for long, to say then that
        we must be restarted. Messages without a result that follow one another are sent at once."""
        _probe(self.conf.broker_url, os.getpid()).ping()


@lru_cache(maxsize=1)
def _probe(url: str, _process_id: int) -> Redis:
    """A connection to ask Redis by, kept open; it times out where Celery's own would wait for ever.

    One that died while nobody spoke is no sign that Redis is away: another is tried.
    """
    return Redis.from_url(
        url,
        socket_timeout=BROKER_SECONDS,
        socket_connect_timeout=BROKER_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )


def broker_unavailable(application: Celery, *, error: Exception) -> BrokerUnavailable:
    """The sentence for a Redis that does not answer; its address without the password."""
    address = application.connection_for_write().as_uri()
    if any(word in str(error).lower() for word in ("auth", "password", "noperm")):
        return BrokerUnavailable(
            f"Redis at {address} refuses the password.",
            remedy="Check TANDEM_REDIS__URL, or the password in TANDEM_HOME/secrets/redis_password.",
        )
    return BrokerUnavailable(
        f"Redis at {address} does not answer ({error}).",
        remedy="Start the stack with `tandem up`, or set TANDEM_REDIS__URL.",
    )


app = TandemCelery("tandem", loader=SettingsLoader)
