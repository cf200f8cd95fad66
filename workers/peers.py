"""One more intelligence host, made known to a training host that is prepared: its name and its host key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from config.home import SECRET_MODE, Home
from registry.files import write_atomically
from workers.errors import StackError
from workers.host_plan import HostPlan
from workers.provision import PUBLIC_MODE, known_hosts_line

HOST, PORT, FURTHER = "TANDEM_DEPLOY__HOST", "TANDEM_DEPLOY__PORT", "TANDEM_DEPLOY__CANDIDATE_HOSTS"


def add_peer(plan: HostPlan) -> list[Path]:
    """Write the plan's peer beside those that are known; keys and passwords stay. The paths written.

    A second time changes nothing but the peer's host key. `StackError` where the host is not prepared.
    """
    if plan.roles != ("train",) or not plan.peer or not plan.server_key:
        raise StackError(
            "--add makes one more intelligence host known to a training host.",
            remedy="tandem init-host --role train --add --peer NAME --peer-host-key FILE",
        )
    line = known_hosts_line(host=plan.peer, port=plan.peer_port, public_key=plan.server_key)
    environment = plan.directory / ".env"
    told = _told(environment, plan=plan)
    known = Home(Path(told.get("TANDEM_HOME") or plan.home)).secrets / "known_hosts"
    return [
        _write(known, text=_with_host(known, line=line), mode=PUBLIC_MODE, like=environment),
        _write(environment, text=_with_peer(environment, told=told, peer=plan.peer), like=environment),
    ]


def _told(environment: Path, *, plan: HostPlan) -> Mapping[str, str | None]:
    """What the `.env` says, where it is one of a training host with a first intelligence host."""
    told = dotenv_values(environment) if environment.is_file() else {}
    if not told.get(HOST):
        raise StackError(
            f"{environment} names no first intelligence host, so there is none to add to.",
            remedy="Without --add, `tandem init-host --role train --peer NAME` prepares this host for one.",
        )
    port = told.get(PORT) or "22"
    if port != str(plan.peer_port):
        raise StackError(
            f"{told[HOST]} is reached at port {port}, {plan.peer} would be at {plan.peer_port}.",
            remedy="All intelligence hosts have one ssh port: --peer-port.",
        )
    return told


def _with_host(known: Path, *, line: str) -> str:
    name = line.split()[0]
    lines = known.read_text().splitlines(keepends=True) if known.is_file() else []
    return "".join([*(old for old in lines if old.split()[:1] != [name]), line])


def _with_peer(environment: Path, *, told: Mapping[str, str | None], peer: str) -> str:
    further = json.loads(told.get(FURTHER) or "[]")
    if peer != told[HOST] and peer not in further:
        further.append(peer)
    kept = re.sub(rf"^{FURTHER}=.*\n?", "", environment.read_text(), flags=re.MULTILINE).rstrip("\n")
    return f"{kept}\n{FURTHER}={json.dumps(further, separators=(',', ':'))}\n"


def _write(path: Path, *, text: str, like: Path, mode: int = SECRET_MODE) -> Path:
    """For the same owner: the parts run as another user than root, who may be the one that prepares."""
    owner = like.stat()
    write_atomically(path, content=text.encode(), mode=mode)
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)
    return path
