"""The `.env` of a host: settings for containers and commands alike, and what docker-compose.yml asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from config.home import Home
from workers.host_plan import POSTGRESQL_PORT, HostPlan

REDIS_USER = "tandem"
AUTHORITY_NAME = "redis_ca.crt"
SERVER_NAMES = ("redis_server.key", "redis_server.crt")
HEADER = "# Written by `tandem init-host`. It holds no password: those lie in TANDEM_HOME/secrets."
OWN_NAMES = frozenset(
    {
        *("TANDEM_HOME", "TANDEM_NAME"),
        *("TANDEM_REDIS__URL", "TANDEM_REDIS__PORT", "TANDEM_REDIS__CA", "TANDEM_REDIS__SIGNED"),
        *("TANDEM_DEPLOY__HOST", "TANDEM_DEPLOY__PORT", "TANDEM_DEPLOY__CANDIDATE_HOSTS"),
        *("STACK_TORCH", "STACK_UID", "STACK_GID", "STACK_REDIS_ADDRESS", "STACK_REDIS_PLAIN_PORT"),
        *("STACK_REDIS_TLS_PORT", "STACK_REDIS_TLS_CERTIFICATE", "STACK_REDIS_TLS_KEY"),
        *("STACK_REDIS_TLS_CA", "STACK_REDIS_CLI"),
    }
)
TLS_MOUNT = "/data"  # run/redis of the home, inside Redis's container


def environment_text(plan: HostPlan) -> str:
    """The `.env`: settings for containers and commands alike, and what docker-compose.yml asks for."""
    lines = [
        HEADER,
        f"TANDEM_HOME={plan.home}",
        *([f"TANDEM_NAME={plan.name}"] if plan.name else []),
        f"TANDEM_REDIS__URL={scheme(plan)}://{REDIS_USER}@{plan.redis_address}:{plan.redis_port}/0",
        f"TANDEM_REDIS__PORT={plan.redis_port}",
        f"STACK_REDIS_ADDRESS={plan.redis_address}",
        *_redis_lines(plan),
        *_registry_lines(plan),
        f"STACK_TORCH={plan.torch}",
        f"STACK_UID={plan.uid}",
        f"STACK_GID={plan.gid}",
    ]
    if "train" in plan.roles and plan.peer:
        lines += [f"TANDEM_DEPLOY__HOST={plan.peer}", f"TANDEM_DEPLOY__PORT={plan.peer_port}"]
    return "\n".join(lines) + "\n"


def added_by_hand(path: Path, *, made: str) -> str:
    """What somebody wrote into a `.env` beside the lines that are made here.

    A registry that it names stays, where none is made: without it tandem would begin anew, with a file.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    own = OWN_NAMES | {_name_of(line) for line in made.splitlines()}
    added = [line for line in lines if line != HEADER and _name_of(line) not in own]
    return "".join(f"{line}\n" for line in added)


def scheme(plan: HostPlan) -> str:
    """Of Redis' URL."""
    return "rediss" if plan.has_tls or plan.redis_authority else "redis"


def _name_of(line: str) -> str:
    return line.partition("=")[0].strip().removeprefix("export ").strip()


def _redis_lines(plan: HostPlan) -> Iterator[str]:
    if scheme(plan) == "rediss":
        yield f"TANDEM_REDIS__CA={Home(plan.home).secrets / AUTHORITY_NAME}"
    if plan.is_signed or plan.signing_keys:
        yield "TANDEM_REDIS__SIGNED=true"
    if plan.has_tls:
        yield "STACK_REDIS_PLAIN_PORT=0"
        yield f"STACK_REDIS_TLS_PORT={plan.redis_port}"
        yield f"STACK_REDIS_TLS_CERTIFICATE={TLS_MOUNT}/{SERVER_NAMES[1]}"
        yield f"STACK_REDIS_TLS_KEY={TLS_MOUNT}/{SERVER_NAMES[0]}"
        yield f"STACK_REDIS_TLS_CA={TLS_MOUNT}/{AUTHORITY_NAME}"
        yield f"STACK_REDIS_CLI=--tls --cacert {TLS_MOUNT}/{AUTHORITY_NAME}"
    else:
        yield f"STACK_REDIS_PLAIN_PORT={plan.redis_port}"


def _registry_lines(plan: HostPlan) -> Iterator[str]:
    if plan.has_postgresql:
        yield f"STACK_POSTGRES_ADDRESS={plan.redis_address}"
        yield f"STACK_POSTGRES_PORT={POSTGRESQL_PORT}"
    if plan.database:
        yield f"TANDEM_REGISTRY_URL={plan.database}"
