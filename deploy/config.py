"""What a deployer must know to reach an intelligence host, and what that host's gate must know."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# A leading minus would be read as an option by ssh and rsync, a colon or a slash as a path.
HOST_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$"
USER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]{0,31}$"

HostName = Annotated[str, StringConstraints(pattern=HOST_PATTERN)]


class RemoteSettings(BaseModel):
    """The intelligence host behind ssh. Without `host`, releases lie in this machine's TANDEM_HOME."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    host: HostName | None = Field(default=None, description="where releases are served; none: here")
    port: int = Field(default=22, ge=1, le=65535, description="of sshd there")
    user: str = Field(default="tandem", pattern=USER_PATTERN)
    data_key: Path | None = Field(default=None, description="default TANDEM_HOME/secrets/deploy_data_key")
    command_key: Path | None = Field(
        default=None, description="default TANDEM_HOME/secrets/deploy_command_key"
    )
    known_hosts: Path | None = Field(default=None, description="default TANDEM_HOME/secrets/known_hosts")
    bandwidth_kib: int = Field(default=0, ge=0, description="KiB/s of a transfer; 0: no limit")
    # On a fully changed checkpoint rsync's delta search took four times as long as sending it whole.
    delta: bool = Field(default=False, description="send changed blocks only; for slow links")
    # Below it a link that stutters costs a retry; above it a dead one holds a deployment.
    silence_seconds: float = Field(default=15.0, gt=0, description="without a sign of life")
    transfer_seconds: float = Field(default=3600.0, gt=0, description="one attempt at most")
    candidate_hosts: tuple[HostName, ...] = Field(
        default=(), description="further hosts that evaluate; same user, port and keys"
    )
    cache_bytes: int = Field(
        default=50_000_000_000, gt=0, description="of candidates, on the intelligence host"
    )

    @property
    def all_hosts(self) -> tuple[str, ...]:
        """Every host that evaluates; the serving one first."""
        first = () if self.host is None else (self.host,)
        return tuple(dict.fromkeys([*first, *self.candidate_hosts]))


class GateConfig(BaseModel):
    """`run/gate.json` of an intelligence host: the forced command of the command key reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field(default_factory=socket.gethostname, description="its name, in what the gate says")
    releases_dir: Path
    incoming_dir: Path = Field(description="where the data key may write; on the same file system")
    cache_dir: Path = Field(description="candidates and suites by content hash")
    cache_bytes: int = Field(gt=0)
    server_url: str
    admin_key_file: Path
    timeout_seconds: float = Field(gt=0)
