"""Files by SFTP over a link that is dead: every wait has an end, also those that paramiko has none for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

import deploy.gateway
import deploy.sftp
from deploy.errors import TransferFailed
from deploy.gateway import connect_by_ssh, open_client
from deploy.sftp import NUM_ATTEMPTS, Sftp
from deploy.transfer import Endpoint
from deploy.wire import Slot

HERE = Endpoint("far", port=22, user="tandem", key=Path("/key"), known_hosts=Path("/known"))
SILENCE = 8.0


class DeadLink:
    """Client, transport and channel in one, of a host that took the connection and says nothing any more."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.options: dict[str, Any] = {}
        self.is_closed = False

    def connect(self, host: str, **options: Any) -> None:
        self.options, self.is_closed = options, False

    def load_host_keys(self, path: str) -> None:
        del path

    def set_missing_host_key_policy(self, policy: object) -> None:
        del policy

    def get_transport(self) -> DeadLink:
        return self

    def set_keepalive(self, seconds: float) -> None:
        self.said.append(f"keepalive {seconds:g}")

    def open_session(self, *, timeout: float) -> DeadLink:
        self.said.append(f"open within {timeout:g}")
        return self

    def settimeout(self, seconds: float) -> None:
        self.said.append(f"wait {seconds:g}")

    def invoke_subsystem(self, name: str) -> None:
        self.said.append(f"begin {name}")
        self._begin()

    def exec_command(self, command: str) -> None:
        self.said.append(f"begin {command}")
        self._begin()

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, num_bytes: int) -> bytes:
        raise TimeoutError("timed out")

    def close(self) -> None:
        self.is_closed = True

    def _begin(self) -> None:
        """As paramiko: until the client is closed, and not before."""
        if self.is_closed:
            raise paramiko.SSHException("Channel closed.")


class Impatient(threading.Timer):
    """One whose time is over as soon as it starts."""

    def start(self) -> None:
        self.function()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> DeadLink:
    link = DeadLink()
    monkeypatch.setattr(deploy.gateway.paramiko, "SSHClient", lambda: link)
    return link


def push(tmp_path: Path, *, sleep: Callable[[float], None] = lambda _: None) -> None:
    (tmp_path / "a").write_bytes(b"a")
    slot = Slot(
        path="/r",
        is_present=False,
        incoming_dir="/in",
        directory="model-a",
        has_rsync=False,
        knows_fsync=False,
    )
    Sftp(HERE, silence_seconds=SILENCE, sleep=sleep).push(tmp_path, names=["a"], slot=slot)


def test_an_sftp_session_has_its_limits_before_a_word_is_said_on_it(link: DeadLink, tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(TransferFailed, match="SFTP to tandem@far:22 failed: timed out"):
        push(tmp_path, sleep=pauses.append)
    assert link.said == ["keepalive 5", "open within 8", "wait 8", "begin sftp"] * NUM_ATTEMPTS
    assert len(pauses) == NUM_ATTEMPTS - 1
    assert link.is_closed


def test_a_client_waits_for_no_channel_for_an_hour(link: DeadLink) -> None:
    open_client(HERE, silence_seconds=SILENCE)
    assert {link.options[f"{what}_timeout"] for what in ("banner", "auth", "channel")} == {SILENCE}
    assert link.said == ["keepalive 5"]


def test_what_never_begins_is_hung_up_upon(link: DeadLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.gateway.threading, "Timer", Impatient)
    with pytest.raises(paramiko.SSHException, match="Channel closed"):
        connect_by_ssh(silence_seconds=SILENCE)(HERE)
    assert link.said[-1] == "begin gate"


def test_what_begins_is_not(link: DeadLink, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[threading.Timer] = []

    class Seen(threading.Timer):
        def start(self) -> None:
            timers.append(self)

    monkeypatch.setattr(deploy.gateway.threading, "Timer", Seen)
    connect_by_ssh(silence_seconds=SILENCE)(HERE)
    (timer,) = timers
    assert (timer.interval, timer.finished.is_set(), link.is_closed) == (SILENCE, True, False)
