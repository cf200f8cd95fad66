"""`tandem doctor`: is this host fit for its roles, and does it fit the other one?

Each check says what it found and how to mend it; what cannot be looked at is `unknown`, never `ok`.
"""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import psutil
from redis import Redis
from redis.exceptions import RedisError

from config.errors import SettingsError
from config.home import Home
from config.settings import LOOPBACK, Settings
from deploy.config import GateConfig
from registry.errors import TandemError
from registry.records import Record
from registry.schema import check_schema
from registry.store import Registry
from workers import signing
from workers.devices import open_device
from workers.stack.gate import gate_config, gate_config_path, read_gate_config

FindingState = Literal["ok", "warning", "failed", "unknown"]
VERSIONS_KEY = "tandem:versions"  # host -> version, as each host's last `tandem doctor` found it
TIMEOUT_SECONDS = 3.0
MAX_SKEW_SECONDS = 2.0
FATAL_SKEW_SECONDS = 30.0  # half of a lease
LOW_DISK_BYTES = 50_000_000_000  # the design's limit
LOW_DISK_SHARE = 0.1
FULL_DISK_BYTES = 5_000_000_000  # less than one release of 0.6B with what is kept beside it


class Finding(Record):
    """One line of the doctor."""

    check: str
    state: FindingState
    found: str
    remedy: str = ""


def examine(
    settings: Settings,
    *,
    connect: Callable[[str], Any] | None = None,
    clock: Callable[[], float] = time.time,
    which: Callable[[str], str | None] = shutil.which,
) -> list[Finding]:
    """Every check of this host, one finding or more each; never raises for what it finds."""
    client = (connect or _connect)(settings.redis_url)
    return [
        home_finding(settings.paths),
        disk_finding(psutil.disk_usage(str(_existing(settings.paths)))),
        *secret_findings(settings.paths),
        program_finding("rsync", which=which),
        ssh_finding(which=which),
        link_finding(settings.redis_url),
        signing_finding(settings),
        *redis_findings(client, host=settings.host_name, clock=clock),
        registry_finding(settings),
        gpu_finding(),
        *gate_findings(settings),
    ]


def home_finding(home: Home) -> Finding:
    """Can the home be written to?"""
    try:
        with tempfile.TemporaryFile(dir=home.root):
            return Finding(check="home", state="ok", found=str(home.root))
    except OSError as error:
        return Finding(
            check="home",
            state="failed",
            found=f"{home.root}: {error.strerror}",
            remedy="`tandem init-host` makes it; else set TANDEM_HOME or its owner.",
        )


def disk_finding(usage: Any) -> Finding:
    """Is there room for checkpoints and releases? `usage` has `free` and `total` in bytes."""
    where = f"{usage.total / 1e9:.1f} GB"
    if usage.free >= LOW_DISK_BYTES and usage.free < LOW_DISK_SHARE * usage.total:
        found = f"{usage.free / 1e9:.1f} GB free of {where}"
        return Finding(check="disk", state="warning", found=found, remedy="Free some space soon.")
    return free_finding(usage.free, check="disk", where=where)


def free_finding(num_bytes: int, *, check: str, where: str) -> Finding:
    """Is so much free space enough?"""
    found = f"{num_bytes / 1e9:.1f} GB free of {where}"
    if num_bytes < FULL_DISK_BYTES:
        return Finding(check=check, state="failed", found=found, remedy="Free some space.")
    if num_bytes < LOW_DISK_BYTES:
        return Finding(check=check, state="warning", found=found, remedy="Free some space soon.")
    return Finding(check=check, state="ok", found=found)


def secret_findings(home: Home) -> Iterator[Finding]:
    """Is each password and private key readable by its owner only?"""
    paths = sorted(home.secrets.iterdir()) if os.access(home.secrets, os.R_OK | os.X_OK) else []
    private = [path for path in paths if path.suffix != ".pub" and path.name != "known_hosts"]
    open_to_others = [path for path in private if path.stat().st_mode & 0o077]
    for path in open_to_others:
        found = f"{path} has mode {path.stat().st_mode & 0o777:o}"
        yield Finding(check="secrets", state="failed", found=found, remedy=f"chmod 600 {path}")
    if not private:
        yield Finding(
            check="secrets",
            state="unknown",
            found=f"none seen in {home.secrets}",
            remedy="`tandem init-host`",
        )
    elif not open_to_others:
        yield Finding(check="secrets", state="ok", found=f"{len(private)}, for their owner only")


def program_finding(name: str, *, which: Callable[[str], str | None]) -> Finding:
    """Is a program there that carries releases to another host?"""
    path = which(name)
    if path is None:
        found = "not on PATH: releases cannot travel from or to this host by it"
        return Finding(check=name, state="warning", found=found, remedy=f"Install {name}.")
    return Finding(check=name, state="ok", found=path)


def ssh_finding(
    *, which: Callable[[str], str | None], look_up: Callable[[int], object] = pwd.getpwuid
) -> Finding:
    """Is ssh there, and does it start for this user? It refuses one whom /etc/passwd does not know."""
    user = os.geteuid()
    try:
        look_up(user)
    except KeyError:
        return Finding(
            check="ssh",
            state="failed",
            found=f"/etc/passwd knows no user {user}, and ssh starts for nobody unknown",
            remedy="In a container: lay run/passwd, which `tandem init-host` writes, over /etc/passwd, "
            "as docker-compose.yml does.",
        )
    return program_finding("ssh", which=which)


def redis_findings(client: Any, *, host: str, clock: Callable[[], float]) -> Iterator[Finding]:
    """Does Redis answer, keep what it takes, know this host by name, agree on time and version?"""
    try:
        user = client.acl_whoami()
        memory, persistence = client.info("memory"), client.info("persistence")
        seconds, microseconds = client.time()
        skew_seconds = clock() - (seconds + microseconds / 1e6)
        versions = _exchange_versions(client, host=host)
    except (RedisError, OSError) as error:
        yield Finding(
            check="redis",
            state="failed",
            found=str(error),
            remedy="Is it up, its address in TANDEM_REDIS__URL, its password in secrets/redis_password?",
        )
        for check in ("redis memory", "redis file", "redis user", "clock", "versions"):
            yield Finding(check=check, state="unknown", found="Redis could not be asked")
        return
    yield Finding(check="redis", state="ok", found="answers")
    yield _policy(memory.get("maxmemory_policy"))
    yield _append_only(persistence)
    yield _user(user)
    yield clock_finding(skew_seconds)
    yield versions_finding(versions)


def link_finding(url: str) -> Finding:
    """Can others read along between this host and Redis? Within one machine there is nothing to read."""
    parts = urlsplit(url)
    if parts.scheme == "rediss":
        return Finding(check="redis link", state="ok", found=f"TLS to {parts.hostname}")
    if parts.hostname in LOOPBACK:
        return Finding(check="redis link", state="ok", found="within this machine")
    remedy = "In a network that others share: `tandem init-host --tls`, and rediss:// in TANDEM_REDIS__URL."
    found = f"plain to {parts.hostname}"
    return Finding(check="redis link", state="warning", found=found, remedy=remedy)


def signing_finding(settings: Settings) -> Finding:
    """Can this host sign messages and check them, where it must?"""
    if not settings.redis.signed:
        found = "messages are not signed: who can write to Redis is trusted"
        return Finding(check="signing", state="ok", found=found)
    try:
        signing.enable(settings.paths.signing)
    except SettingsError as error:
        return Finding(check="signing", state="failed", found=error.message, remedy=error.remedy)
    num_trusted = len(list((settings.paths.signing / signing.TRUSTED_NAME).iterdir()))
    return Finding(check="signing", state="ok", found=f"signed; {num_trusted} keys are trusted")


def clock_finding(skew_seconds: float, *, check: str = "clock", other: str = "Redis's host") -> Finding:
    """Do this host's clock and that of another agree?"""
    found = f"{skew_seconds:+.1f} s from {other}"
    if abs(skew_seconds) <= MAX_SKEW_SECONDS:
        return Finding(check=check, state="ok", found=found)
    state: FindingState = "failed" if abs(skew_seconds) > FATAL_SKEW_SECONDS else "warning"
    return Finding(check=check, state=state, found=found, remedy="Run an NTP client on both hosts.")


def versions_finding(versions: Mapping[str, str]) -> Finding:
    """Do all hosts run the same of what makes their numbers? One host alone proves nothing."""
    found = "; ".join(f"{host}: {text}" for host, text in sorted(versions.items()))
    if len(versions) < 2:
        remedy = "Run `tandem doctor` on the other host, then here again."
        return Finding(check="versions", state="unknown", found=f"no other host: {found}", remedy=remedy)
    if len(set(versions.values())) > 1:
        remedy = "Bring all hosts to the newest, then run `tandem doctor` on each."
        return Finding(check="versions", state="failed", found=found, remedy=remedy)
    return Finding(check="versions", state="ok", found=found)


def registry_finding(settings: Settings) -> Finding:
    """Is the registry there and up to date? An intelligence host has none."""
    registry = Registry(settings.database_url)
    if settings.registry_url is None and not settings.paths.database.exists():
        return Finding(
            check="registry", state="unknown", found="none here, as is right for an intelligence host alone"
        )
    try:
        check_schema(registry)
    except TandemError as error:
        return Finding(check="registry", state="failed", found=error.message, remedy=error.remedy)
    return Finding(check="registry", state="ok", found="answers, and is up to date")


def gpu_finding() -> Finding:
    """Which device would be used, and does its driver answer?"""
    try:
        device = open_device("auto")
        free_bytes = device.use().free_bytes
    except TandemError as error:
        return Finding(check="gpu", state="failed", found=error.message, remedy=error.remedy)
    if device.name == "cpu":
        remedy = "With a GPU: install its driver, and add docker-compose.gpu.yml."
        return Finding(
            check="gpu", state="warning", found="none is seen; work runs on the CPU", remedy=remedy
        )
    return Finding(check="gpu", state="ok", found=f"{device.name}, {free_bytes / 1e9:.1f} GB free")


def gate_findings(settings: Settings) -> Iterator[Finding]:
    """Does this host's gate know what its settings say? Nothing is found where there is no gate."""
    path = gate_config_path(settings)
    if not path.exists():
        return
    told, wanted = read_gate_config(path), gate_config(settings)
    remedy = "Start the server anew: `docker-compose up -d`, or `tandem up`; it writes the file."
    if told is None:
        found = f"{path} cannot be read, or is of another version"
        yield Finding(check="gate", state="failed", found=found, remedy=remedy)
        return
    wrong = [name for name in GateConfig.model_fields if getattr(told, name) != getattr(wanted, name)]
    if not wrong:
        yield Finding(check="gate", state="ok", found=f"{path} says what the settings say")
        return
    differences = [f"{name} {getattr(told, name)}, not {getattr(wanted, name)}" for name in wrong]
    found = f"{path} says {'; '.join(differences)} as the settings do"
    yield Finding(check="gate", state="failed", found=found, remedy=remedy)


def _connect(url: str) -> Redis:
    return Redis.from_url(
        url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, decode_responses=True
    )


def _existing(home: Home) -> Any:
    path = home.root
    while not path.exists():
        path = path.parent
    return path


def _exchange_versions(client: Any, *, host: str) -> dict[str, str]:
    client.hset(VERSIONS_KEY, host, own_versions())
    return cast(dict[str, str], client.hgetall(VERSIONS_KEY))


def own_versions() -> str:
    """Of tandem, Python, PyTorch and transformers; the build of PyTorch may differ from host to host."""
    packages = [
        f"{name} {version_of(name).partition('+')[0]}" for name in ("tandem", "torch", "transformers")
    ]
    return ", ".join([*packages, f"python {platform.python_version()}"])


def version_of(package: str) -> str:
    """As it is installed here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _policy(policy: str | None) -> Finding:
    if policy == "noeviction":
        return Finding(check="redis memory", state="ok", found="noeviction")
    remedy = "Set maxmemory-policy noeviction: else a full Redis drops messages."
    return Finding(check="redis memory", state="failed", found=str(policy), remedy=remedy)


def _append_only(persistence: Mapping[str, Any]) -> Finding:
    if persistence.get("aof_enabled") != 1:
        remedy = "Set appendonly yes: else a restart loses every message."
        return Finding(check="redis file", state="failed", found="no append-only file", remedy=remedy)
    status = str(persistence.get("aof_last_write_status"))
    if status != "ok":
        remedy = "Redis's disk is full or broken: its log says more."
        return Finding(check="redis file", state="failed", found=f"last write: {status}", remedy=remedy)
    return Finding(check="redis file", state="ok", found="append-only, last write ok")


def _user(user: str) -> Finding:
    if user == "default":
        remedy = "Right for `tandem up`; beyond one machine, start Redis by docker-compose.yml."
        return Finding(check="redis user", state="warning", found="the default user", remedy=remedy)
    return Finding(check="redis user", state="ok", found=user)
