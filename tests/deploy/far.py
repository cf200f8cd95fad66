"""An intelligence host without a network: its gate answers in this process, its disk is a directory."""

from __future__ import annotations

from pathlib import Path

from deploy.config import GateConfig
from deploy.gatekeeper import Gatekeeper
from deploy.gateway import Gateway
from deploy.testing import CopyingCarrier, FakeDoor, FakeTarget, GateLine
from deploy.transfer import Endpoint
from registry.testing import START

PLENTY = 10**12


class FarHost:
    """`gateway()` connects to it anew; `lines` are all connections that were made."""

    def __init__(self, root: Path, *, cache_bytes: int = PLENTY) -> None:
        self.root = root
        self.free_bytes = PLENTY
        self.now = START
        self.door = FakeDoor(FakeTarget(), now=START)
        self.carrier = CopyingCarrier()
        self.lines: list[GateLine] = []
        self.config = GateConfig(
            host="far",
            releases_dir=root / "releases",
            incoming_dir=root / "incoming",
            cache_dir=root / "cache",
            cache_bytes=cache_bytes,
            server_url="http://127.0.0.1:8765",
            admin_key_file=root / "key",
            timeout_seconds=1,
        )

    def gatekeeper(self) -> Gatekeeper:
        return Gatekeeper(
            self.config,
            door=self.door,
            host="far",
            version="1",
            clock=lambda: self.now,
            sleep=lambda _: None,
            measure_free=lambda _: self.free_bytes,
        )

    def gateway(self, *, fence: int = 1) -> Gateway:
        def connect(_: Endpoint) -> GateLine:
            self.lines.append(GateLine(self.gatekeeper()))
            return self.lines[-1]

        endpoint = Endpoint("far", port=22, user="tandem", key=Path("/key"), known_hosts=Path("/known"))
        return Gateway(endpoint, connect=connect, fence=fence, sleep=lambda _: None)
