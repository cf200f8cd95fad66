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
POSTGRESQL_PORT = 5432
# No password stands in it: it goes into `.env`.
REGISTRY_PATTERN = r"^postgres(ql)?(\+psycopg)?://[A-Za-z0-9_.-]+@[A-Za-z0-9._:\[\]-]*/[A-Za-z0-9_.-]+(\?[A-Za-z0-9_./=&%-]*)?$"


class HostPlan(Record):
    """One host of several, or all on one machine. Unnamed, it goes by its own host name."""

    roles: tuple[Role, ...] = Field(min_length=1)
    name: str | None = Field(default=None, pattern=HOST_PATTERN, max_length=MAX_NAME_CHARS)
    joins: bool = Field(default=False, description="a further training host: it trains and does nothing else")
    directory: Path
    home: Path
    redis_address: str = Field(pattern=r"^[A-Za-z0-9.:_-]+$")
    redis_port: int = Field(default=6390, ge=1, le=65535)
    redis_password: str | None = Field(default=None, min_length=16)
    has_tls: bool = Field(default=False, description="of this host's Redis, its certificate made here")
    redis_authority: str | None = Field(default=None, description="PEM; of a training host whose Redis does")
    has_postgresql: bool = Field(default=False, description="the registry is a PostgreSQL that runs here")
    registry_url: str | None = Field(
        default=None, pattern=REGISTRY_PATTERN, description="none: see `database`"
    )
    registry_password: str | None = Field(default=None, min_length=1)
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

    @property
    def database(self) -> str | None:
        """The registry's URL, without a password; none where it is a file of the home."""
        if self.registry_url is None and self.has_postgresql:
            return f"postgresql://tandem@{self.redis_address}:{POSTGRESQL_PORT}/tandem"
        return self.registry_url


def next_command(plan: HostPlan) -> str:
    """The one command that starts this host."""
    gpu = " -f docker-compose.yml -f docker-compose.gpu.yml" if plan.torch == "cuda" else ""
    profiles = "".join(f" --profile {name}" for name in (*_databases(plan), *plan.roles))
    alone = " --no-deps train" if plan.joins else ""
    return f"docker-compose{gpu}{profiles} up -d --build{alone}"


def _databases(plan: HostPlan) -> tuple[str, ...]:
    return ("postgres",) if plan.has_postgresql else ()
