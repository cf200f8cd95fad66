"""What the gate of an intelligence host must know, written where its forced command reads it."""

from __future__ import annotations

from pathlib import Path

from config.settings import Settings
from deploy.config import GateConfig
from registry.files import write_json


def write_gate_config(settings: Settings) -> Path:
    """`run/gate.json` of this home; its path. The server's admin key is made if it was not yet."""
    settings.paths.prepare()
    settings.paths.secret("server_admin_key")
    config = GateConfig(
        host=settings.host_name,
        releases_dir=settings.paths.releases.absolute(),
        incoming_dir=settings.paths.incoming.absolute(),
        cache_dir=settings.paths.cache.absolute(),
        cache_bytes=settings.deploy.cache_bytes,
        server_url=settings.server_url,
        admin_key_file=(settings.paths.secrets / "server_admin_key").absolute(),
        timeout_seconds=settings.deployment.timeout_seconds,
    )
    path = (settings.paths.run / "gate.json").absolute()
    write_json(path, value=config.model_dump(mode="json"))
    return path
