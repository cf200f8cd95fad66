"""The hosts behind ssh as the settings name them: keys, limits, and a connection that is closed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from config.settings import Settings
from deploy.errors import HostUnreachable
from deploy.gateway import Gateway, connect_by_ssh
from deploy.remote import Candidates, FileCarrier, GateDoor, RemoteTarget
from deploy.sftp import Sftp
from deploy.transfer import Endpoint, Rsync


@dataclass(frozen=True)
class RemoteHost:
    """Everything that can be asked of one intelligence host."""

    gateway: Gateway
    target: RemoteTarget
    door: GateDoor
    candidates: Candidates


@contextmanager
def open_remote(settings: Settings, *, host: str | None = None, fence: int = 0) -> Iterator[RemoteHost]:
    """The named host, else the serving one; `HostUnreachable` where the settings name none.

    Nothing is connected before the first question. `fence` is the token of the caller's lease.
    """
    deploy = settings.deploy
    gateway = Gateway(
        endpoint(settings, host=host, key=key_path(settings, "command")),
        connect=connect_by_ssh(silence_seconds=deploy.silence_seconds),
        fence=fence,
    )
    data = endpoint(settings, host=host, key=key_path(settings, "data"))
    carrier = FileCarrier(
        Rsync(
            data,
            transfer_seconds=deploy.transfer_seconds,
            bandwidth_kib=deploy.bandwidth_kib,
            delta=deploy.delta,
        ),
        sftp=Sftp(data, silence_seconds=deploy.silence_seconds, bandwidth_kib=deploy.bandwidth_kib),
    )
    try:
        yield RemoteHost(
            gateway,
            RemoteTarget(gateway, carrier=carrier),
            GateDoor(gateway),
            Candidates(gateway, carrier=carrier),
        )
    finally:
        gateway.close()


def endpoint(settings: Settings, *, host: str | None, key: Path) -> Endpoint:
    """Where a host is reached with one of the two keys."""
    name = host or settings.deploy.host
    if name is None:
        raise HostUnreachable("No intelligence host is named.", remedy="Set TANDEM_DEPLOY__HOST.")
    deploy = settings.deploy
    known_hosts = deploy.known_hosts or settings.paths.secrets / "known_hosts"
    return Endpoint(name, port=deploy.port, user=deploy.user, key=key, known_hosts=known_hosts.absolute())


def key_path(settings: Settings, name: str) -> Path:
    """Of the `data` or the `command` key."""
    named = settings.deploy.data_key if name == "data" else settings.deploy.command_key
    return (named or settings.paths.secrets / f"deploy_{name}_key").absolute()
