"""What the gate of an intelligence host must know, written where its forced command reads it.

`tandem init-host` writes it first, the parts of that host whenever they start: settings change in between.
"""

from __future__ import annotations

from pathlib import Path

from config.settings import Settings
from deploy.config import GateConfig
from registry.files import write_json

GATE_NAME = "gate.json"


def write_gate_config(settings: Settings) -> Path:
    """`run/gate.json` of this home; its path. The server's admin key is made if it was not yet."""
    settings.paths.prepare()
    settings.paths.secret("server_admin_key")
    path = gate_config_path(settings)
    write_json(path, value=gate_config(settings).model_dump(mode="json"))
    return path


def refresh_gate_config(settings: Settings) -> None:
    """Have a gate that `tandem init-host` made say what the settings say since. Elsewhere, do nothing."""
    path = gate_config_path(settings)
    if path.exists() and read_gate_config(path) != gate_config(settings):
        write_gate_config(settings)


def read_gate_config(path: Path) -> GateConfig | None:
    """As the forced command reads it; None where it could not."""
    try:
        return GateConfig.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def gate_config(settings: Settings) -> GateConfig:
    """What the gate should know by these settings."""
    return GateConfig(
        host=settings.host_name,
        releases_dir=settings.paths.releases.absolute(),
        incoming_dir=settings.paths.incoming.absolute(),
        cache_dir=settings.paths.cache.absolute(),
        cache_bytes=settings.deploy.cache_bytes,
        server_url=settings.server_url,
        admin_key_file=(settings.paths.secrets / "server_admin_key").absolute(),
        timeout_seconds=door_seconds(settings),
    )


def gate_config_path(settings: Settings) -> Path:
    """Where the forced command reads it."""
    return (settings.paths.run / GATE_NAME).absolute()


def door_seconds(settings: Settings) -> float:
    """How long whoever deploys waits for the server. A vLLM may start twice in that time.

    The release makes way for the new one, that fails when its start was waited for to the end, and the former
    one is started again: less patience would leave a swap alone in its midst.
    """
    server, seconds = settings.server, settings.deployment.timeout_seconds
    if server.engine != "vllm":
        return seconds
    return max(seconds, server.max_pause_seconds + 2 * server.vllm.start_seconds)
