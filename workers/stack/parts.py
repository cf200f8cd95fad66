"""The parts of the embedded stack: what each runs, where it listens, and how it shows that it is up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from config.settings import Settings
from registry.files import write_json
from workers.contracts import CONTROL, EVALUATION, INTELLIGENCE
from workers.stack.redis_server import find_redis_server, write_redis_config

CHECK_SECONDS = 1.0
STOP_SECONDS = 15.0  # for a worker to end its task, or for the runner to write what its trainer saved
UNAUTHORIZED = 401
# One deployment and one candidate's transfer may last an hour each (a lease keeps it at one), and a large
# submission minutes: a person's pause must still find a process that is free.
CONTROL_PROCESSES = 4


@dataclass(frozen=True)
class Part:
    """One process of the stack. `is_ready` asks the process itself, never its pid."""

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    stop_seconds: float = 10.0


def stack_parts(settings: Settings, *, celery: Celery) -> list[Part]:
    """Every part, in the order in which they start."""
    return [
        *([redis_part(settings)] if settings.has_embedded_redis else []),
        worker_part(
            settings, celery=celery, name="control", queues=(CONTROL,), num_processes=CONTROL_PROCESSES
        ),
        worker_part(settings, celery=celery, name="intelligence", queues=(EVALUATION, INTELLIGENCE)),
        server_part(settings),
        _celery_part("beat", "--pidfile="),
        flower_part(settings),
        worker_part(settings, celery=celery, name="train", queues=settings.training.queues),
    ]


def redis_part(settings: Settings) -> Part:
    """The embedded Redis."""
    command = (str(find_redis_server()), str(write_redis_config(settings)))
    return Part("redis", command, lambda: _answers_ping(settings.redis_url), port=settings.redis.port)


def worker_part(
    settings: Settings, *, celery: Celery, name: str, queues: tuple[str, ...], num_processes: int = 1
) -> Part:
    """A Celery worker on these queues, in this order of strictness."""
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-n", node_name(settings, name)]
    command += ["-Q", ",".join(str(queue) for queue in queues), "-c", str(num_processes)]
    command += ["--loglevel", settings.log_level, "--without-gossip", "--without-mingle"]
    save_seconds = settings.training.stop_grace_seconds if name == "train" else 0.0
    return Part(
        name,
        tuple(command),
        lambda: _worker_answers(celery, node=node_name(settings, name)),
        stop_seconds=save_seconds + STOP_SECONDS,
    )


def node_name(settings: Settings, name: str) -> str:
    """As Celery names a worker. A percent sign would be a place for something in it; a host name has none."""
    return f"{name}@{settings.host_name}"


def server_part(settings: Settings) -> Part:
    """The inference server. What it must know stands in a file: it reads no settings."""
    server = settings.server
    settings.paths.secret("server_admin_key")
    config = settings.paths.run / "server.json"
    fields: dict[str, object] = {
        "host": server.host,
        "port": server.port,
        "releases_dir": str(settings.paths.releases),
        "admin_key_file": str(settings.paths.secrets / "server_admin_key"),
        "engine": server.engine,
        "vllm": server.vllm.model_dump(mode="json"),
        "swap": server.swap,
        "max_pause_seconds": server.max_pause_seconds,
        "device": server.device,
        "num_threads": server.num_threads,
        "max_new_tokens": server.max_new_tokens,
        "max_running": server.max_running,
        "max_batch_tokens": server.max_batch_tokens,
    }
    if not server.is_open:
        settings.paths.secret("server_read_key")
        fields["read_key_file"] = str(settings.paths.secrets / "server_read_key")
    write_json(config, value=fields)
    command = (sys.executable, "-m", "inference.server", str(config))
    return Part(
        "server", command, lambda: _http_status(f"{settings.server_url}/health") == 200, port=server.port
    )


def flower_part(settings: Settings) -> Part:
    """Flower, on loopback behind a password. The password travels by environment: `ps` never shows it."""
    port = settings.flower.port
    part = _celery_part("flower", "--address=127.0.0.1", f"--port={port}")
    credentials = f"{settings.flower.user}:{settings.paths.secret('flower_password')}"
    return Part(
        "flower",
        part.command,
        lambda: _http_status(f"http://127.0.0.1:{port}/") in (200, UNAUTHORIZED),
        port=port,
        environment={"FLOWER_BASIC_AUTH": credentials},
    )


def _celery_part(name: str, *options: str) -> Part:
    command = (sys.executable, "-m", "celery", "-A", "workers.app", name, *options)
    return Part(name, command, lambda: True)


def _answers_ping(url: str) -> bool:
    try:
        with Redis.from_url(
            url, socket_timeout=CHECK_SECONDS, socket_connect_timeout=CHECK_SECONDS
        ) as client:
            return bool(client.ping())
    except (RedisError, OSError):
        return False


def _worker_answers(celery: Celery, *, node: str) -> bool:
    try:
        answers = celery.control.ping(timeout=CHECK_SECONDS) or []
    except (OperationalError, RedisError, OSError):
        return False  # Redis is away or refuses: whoever asks must not fall with it
    return any(node in answer for answer in answers)


def _http_status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=CHECK_SECONDS).status_code
    except httpx.HTTPError:
        return None
