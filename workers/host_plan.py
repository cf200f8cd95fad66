"""What is to be prepared on one host: its roles, whom it meets and what it takes from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from deploy.config import HOST_PATTERN
from registry.records import Record

Role = Literal["train", "intel"]
IMAGE_UID = 10001  # of the image's own user: whose files they are where root prepares a host
MAX_NAME_CHARS = 64  # as Linux has it


class HostPlan(Record):
    """One host of several, or all on one machine. Unnamed, it goes by its own host name."""

    roles: tuple[Role, ...] = Field(min_length=1)
    name: str | None = Field(default=None, pattern=HOST_PATTERN, max_length=MAX_NAME_CHARS)
    directory: Path
    home: Path
    redis_address: str = Field(pattern=r"^[A-Za-z0-9.:_-]+$")
    redis_port: int = Field(default=6390, ge=1, le=65535)
    redis_password: str | None = Field(default=None, min_length=16)
    has_tls: bool = Field(default=False, description="of this host's Redis, its certificate made here")
    redis_authority: str | None = Field(default=None, description="PEM; of a training host whose Redis does")
    is_signed: bool = Field(default=False, description="messages are signed, with a key made here")
    signing_keys: Path | None = Field(default=None, description="the training host's secrets/signing, copied")
    torch: Literal["cpu", "cuda"] = "cpu"
    server_key: str | None = None
    data_public_key: str | None = None
    command_public_key: str | None = None
    has_rsync: bool = Field(default=True, description="rsync and rrsync are here; else files come by SFTP")
    python: Path = Field(description="that runs the gate: an installed tandem on the host itself")
    peer: str | None = Field(default=None, pattern=HOST_PATTERN, max_length=MAX_NAME_CHARS)
    peer_port: int = Field(default=22, ge=1, le=65535)
    uid: int = Field(ge=1, description="the parts run as this user, never as root")
    gid: int = Field(ge=1)


def next_command(plan: HostPlan) -> str:
    """The one command that starts this host."""
    gpu = " -f docker-compose.yml -f docker-compose.gpu.yml" if plan.torch == "cuda" else ""
    profiles = "".join(f" --profile {role}" for role in plan.roles)
    return f"docker-compose{gpu}{profiles} up -d --build"
