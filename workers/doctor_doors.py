"""What `tandem doctor` finds out about this host's own doors: what listens, and who may come in by ssh."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from config.home import Home
from config.settings import Settings
from workers.doctor import Finding, program_finding
from workers.stack.gate import gate_config_path

TIMEOUT_SECONDS = 3.0
SSH_PORT = 22
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
NUM_ENTRIES = 1000  # of the cache, looked at

Listens = Callable[[str, int], bool]


def door_findings(
    settings: Settings,
    *,
    listens: Listens | None = None,
    which: Callable[[str], str | None] = shutil.which,
    ssh_port: int = SSH_PORT,
) -> Iterator[Finding]:
    """The ports of the parts; on a host that others enter also its gate, its sshd and its rrsync."""
    asks = listens or _listens
    server, flower = settings.server, settings.flower
    address = LOOPBACK if server.host in EVERYWHERE else server.host
    yield port_finding("inference server", is_heard=asks(address, server.port), at=f"{address}:{server.port}")
    yield port_finding("flower", is_heard=asks(LOOPBACK, flower.port), at=f"{LOOPBACK}:{flower.port}")
    gate = gate_config_path(settings)
    if not gate.exists():
        return
    yield sshd_finding(is_heard=asks(LOOPBACK, ssh_port), port=ssh_port)
    yield program_finding("rrsync", which=which)
    yield owner_finding(settings.paths, gate=gate)


def port_finding(name: str, *, is_heard: bool, at: str) -> Finding:
    """Does something listen there? Only its absence is certain, and may be meant."""
    check = f"port {at.rpartition(':')[2]}"
    if is_heard:
        return Finding(check=check, state="ok", found=f"something listens at {at}, meant for {name}")
    return Finding(check=check, state="unknown", found=f"{name} does not listen at {at}")


def sshd_finding(*, is_heard: bool, port: int) -> Finding:
    """Can the training host knock? It may have been told another port, which this host does not know."""
    if is_heard:
        return Finding(check="sshd", state="ok", found=f"something listens on port {port}")
    return Finding(
        check="sshd",
        state="warning",
        found=f"nothing listens on port {port}: the training host cannot come in there",
        remedy="Start sshd; on another port, TANDEM_DEPLOY__PORT names it on the training host.",
    )


def owner_finding(home: Home, *, gate: Path) -> Finding:
    """Do the gate, which the training host enters as some account, and the parts write as the same user?"""
    try:
        paths = [home.root, gate, home.incoming, home.cache, *_some(home.cache)]
        owners = {path: path.stat().st_uid for path in paths if path.exists()}
    except OSError as error:
        found = f"{error.filename}: {error.strerror}"
        return Finding(check="gate files", state="unknown", found=found, remedy="Run this as their owner.")
    expected = owners[home.root] if os.geteuid() == 0 else os.geteuid()
    for path, owner in owners.items():
        if owner != expected:
            return Finding(
                check="gate files",
                state="failed",
                found=f"{path} is {_name(owner)}'s, not {_name(expected)}'s",
                remedy="One account for gate and parts: `tandem init-host --role intel --user NAME`, "
                f"or `chown -R NAME {home.root}`.",
            )
    return Finding(check="gate files", state="ok", found=f"all are {_name(expected)}'s")


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def _some(directory: Path) -> list[Path]:
    entries = sorted(directory.iterdir())[:NUM_ENTRIES] if directory.is_dir() else []
    return [path for path in entries if not path.is_symlink()]


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
