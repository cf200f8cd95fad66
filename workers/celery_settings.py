"""Every Celery setting that is not a default, each with its reason."""

from __future__ import annotations

import ssl
from datetime import timedelta
from typing import Any

from kombu import Exchange, Queue

from config.settings import Settings
from workers import signing
from workers.contracts import QUEUES, TASKS

TASK_MODULES = (
    "tasks.training",
    "tasks.commands",
    "tasks.checkpoints",
    "tasks.evaluation",
    "tasks.regression",
    "tasks.accuracy",
    "tasks.calibration",
    "tasks.ranking",
    "tasks.deployment",
    "tasks.safety",
)


def celery_settings(settings: Settings) -> dict[str, Any]:
    """The configuration of the Celery application."""
    return {
        "broker_url": settings.redis_url,
        "result_backend": settings.redis_url,
        "include": (*TASK_MODULES, "workers.holding", "workers.forking"),
        **_content(settings),
        "timezone": "UTC",  # as every time in the registry
        "task_queues": [Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
        "task_default_queue": "control",
        "task_routes": {name: {"queue": str(contract.queue)} for name, contract in TASKS.items()},
        # A typing error in a queue's name must not make a queue that nobody consumes.
        "task_create_missing_queues": False,
        **_delivery(),
        **_connections(),
        **_tls(settings),
        "beat_schedule": beat_schedule(settings),
        # The schedule is this table; nothing is kept that a restart could find out of date, and a host's
        # clock that is set back silences no loop.
        "beat_scheduler": "workers.beat:SteadyScheduler",
        "worker_send_task_events": True,  # Flower shows what runs
        "task_send_sent_event": True,  # ... and what waits
        "worker_hijack_root_logger": True,  # one format in a worker's log, whoever writes there
        "worker_redirect_stdouts": False,  # nothing of ours prints; a library's words are no log entries
    }


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """The loops. A message that was not taken before the next tick expires: ticks never pile up."""
    every = settings.schedule
    ticks = {
        "safety.sweep": every.sweep_seconds,
        "inbox.scan": every.inbox_seconds,
        "judgement.sweep": every.judgement_seconds,
        "ranking.update": every.ranking_seconds,
        "deployment.sync_best": every.deployment_seconds,
    }
    return {
        name: {"task": name, "schedule": timedelta(seconds=seconds), "options": {"expires": seconds}}
        for name, seconds in ticks.items()
    }


def _content(settings: Settings) -> dict[str, Any]:
    """JSON only, bare or signed: a message can never run code."""
    kind = signing.SERIALIZER if settings.redis.signed else "json"
    return {"task_serializer": kind, "result_serializer": kind, "accept_content": [kind]}


def _tls(settings: Settings) -> dict[str, Any]:
    """The URL says it all to Celery; Flower reads the settings instead."""
    if not settings.redis_url.startswith("rediss://"):
        return {}
    redis = settings.redis
    files = {"ssl_ca_certs": redis.ca, "ssl_certfile": redis.certificate, "ssl_keyfile": redis.key}
    named = {name: str(path) for name, path in files.items() if path is not None}
    how = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **named}
    return {"broker_use_ssl": how, "redis_backend_use_ssl": how}


def _delivery() -> dict[str, Any]:
    return {
        # A worker takes a message only when a process is free, so that a message waiting in a worker's
        # memory never overtakes one of higher priority.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # A worker killed in the midst of a task has not acknowledged it: the message comes again, and where
        # obeying it twice would do harm, it is known (`registry/handled.py`).
        "task_acks_late": True,
        # A message that killed its worker is not tried for ever: the registry asks again, a few times.
        "task_reject_on_worker_lost": False,
        # A task that failed has said why; the same message would fail again.
        "task_acks_on_failure_or_timeout": True,
        # Results are for a caller who waits, not for history: that is in the registry.
        "result_expires": timedelta(hours=24),
        # A Redis that is away for a moment must not turn what is done into a FAILURE: the result is written
        # again, ten times within ten seconds or so. Longer, a process would wait for a caller who has left.
        "result_backend_always_retry": True,
        "result_backend_max_retries": 10,
    }


def _connections() -> dict[str, Any]:
    return {
        "broker_transport_options": {
            "queue_order_strategy": "priority",  # high, then normal, then low: the order of -Q
            # How long what a killed worker held stays away. Training is acknowledged on receipt. A large
            # evaluation, or an answer that waits for Redis, may last longer: it is then delivered once more,
            # answered from what was kept, and recorded once.
            "visibility_timeout": 3600,
            # A Redis that vanished without a word (a cable, a firewall) is noticed: where an answer is three
            # seconds late, where connecting takes five, and by a PING on a connection that was idle for ten.
            # Without the first a worker or beat waits for ever; taking messages is no such wait.
            "socket_timeout": 3,
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            "health_check_interval": 10,
        },
        # The same for the connections of results.
        "redis_socket_timeout": 3,
        "redis_socket_connect_timeout": 5,
        "redis_backend_health_check_interval": 10,
        "broker_connection_retry_on_startup": True,  # parts may start in any order
        "broker_connection_max_retries": None,  # Redis may be away for hours; no worker gives up
        # A Redis without memory refuses commands: that ends no worker either, it asks again.
        "broker_channel_error_retry": True,
        # Redis going away must not kill a training run: its truth is in the registry.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Whoever sends to a Redis that refuses waits a second at most, to one that says nothing a dozen: a
        # lost bell is rung again, and a person is told at once.
        "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.3},
    }
