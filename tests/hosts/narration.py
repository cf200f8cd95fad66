"""Says aloud what a deployer asks and carries, so that a fault can strike at a stage of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from config.settings import Settings
from deploy.remote import Candidates, FileCarrier, GateDoor, RemoteTarget
from workers.remotes import RemoteHost, open_remote

# What is said first in each: before the transfer, in it, while it is verified, loaded, tried, made current.
STAGES = {
    "preflight": "ask begin",
    "transfer": "carry",
    "verify": "ask seal",
    "load": "ask set_active",
    "probe": "ask probe",
    "activate": "ask activate",
}


class Narrator:
    """In front of a gateway and a carrier."""

    def __init__(self, gateway: Any, *, carrier: Any) -> None:
        self._gateway = gateway
        self._carrier = carrier

    @property
    def endpoint(self) -> Any:
        return self._gateway.endpoint

    def ask(self, request: Any) -> object:
        print(f"ask {request.verb}", flush=True)
        answer: object = self._gateway.ask(request)
        return answer

    def carry(self, source: Path, **options: Any) -> None:
        print("carry", flush=True)
        self._carrier.carry(source, **options)


@contextmanager
def open_narrated(settings: Settings, *, host: str | None = None, fence: int = 0) -> Iterator[RemoteHost]:
    """`open_remote`, aloud."""
    with open_remote(settings, host=host, fence=fence) as remote:
        carrier: FileCarrier = remote.target._carrier
        narrator: Any = Narrator(remote.gateway, carrier=carrier)
        yield RemoteHost(
            narrator,
            RemoteTarget(narrator, carrier=narrator),
            GateDoor(narrator),
            Candidates(narrator, carrier=narrator),
        )
