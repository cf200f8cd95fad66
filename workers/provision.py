"""What a host needs before its first start: `.env`, passwords, access rules, ssh keys, with their modes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.home import SECRET_MODE, Home
from config.settings import Settings
from deploy.access import authorized_keys
from registry.files import write_atomically
from workers import signing
from workers.certificates import make_server_files, make_signing_pair
from workers.errors import StackError
from workers.host_environment import (
    AUTHORITY_NAME,
    REDIS_USER,
    SERVER_NAMES,
    added_by_hand,
    environment_text,
    scheme,
)
from workers.host_plan import HostPlan
from workers.stack.gate import GATE_NAME, write_gate_config

PUBLIC_MODE = 0o644
KEYS = ("deploy_data_key", "deploy_command_key")
AUTHORIZED_KEYS = "authorized_keys"
REGISTRY_PASSWORD = "registry_password"  # noqa: S105 - a file's name
USERS_NAME = "passwd"  # of `run`; docker-compose.yml lays it over a container's own


def provision(plan: HostPlan, *, force: bool = False) -> list[Path]:
    """Write all files of the plan, or none where one exists and `force` is not given; the paths written.

    Raises `StackError` naming what exists already.
    """
    home = Home(plan.home)
    target = plan.directory / ".env"
    _refuse_overwriting([target, *_secret_paths(plan, home=home)], force=force)
    home.prepare()
    for name in ("redis", "postgresql") if plan.has_postgresql else ("redis",):
        (home.run / name).mkdir(exist_ok=True, mode=0o700)
    written = [_write(path, text=text, mode=mode) for path, text, mode in _secrets(plan, home=home)]
    written.append(_write(home.run / USERS_NAME, text=users_text(plan), mode=PUBLIC_MODE))
    made = environment_text(plan)
    written.append(_write(target, text=made + added_by_hand(target, made=made), mode=SECRET_MODE))
    if plan.data_public_key:
        written.append(write_gate_config(Settings(home=plan.home, name=plan.name)))
    _give_away(plan, home=home, also=target)
    return written


def acl_text(password: str) -> str:
    """Redis' access rules: nobody without a name, and one user who can neither administer nor empty it."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f"user default off\nuser {REDIS_USER} on #{digest} ~* &* +@all -@admin -@dangerous +info\n"


def users_text(plan: HostPlan) -> str:
    """A container's `/etc/passwd`. The image knows its own user only, and ssh starts for nobody unknown."""
    shell = "/usr/sbin/nologin"
    return f"root:x:0:0:root:/root:{shell}\ntandem:x:{plan.uid}:{plan.gid}:tandem:/tmp:{shell}\n"


def known_hosts_line(*, host: str, port: int, public_key: str) -> str:
    """The line by which ssh knows that host; `StackError` for what is no public host key."""
    words = public_key.split()
    if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-")):
        raise StackError(
            "That is no public host key.",
            remedy="It is the file /etc/ssh/ssh_host_ed25519_key.pub of the intelligence host.",
        )
    name = host if port == 22 else f"[{host}]:{port}"
    return f"{name} {words[0]} {words[1]}\n"


def _secret_paths(plan: HostPlan, *, home: Home) -> Iterator[Path]:
    yield home.secrets / "redis_password"
    yield home.secrets / "redis.acl"
    if plan.registry_password or plan.has_postgresql:
        yield home.secrets / REGISTRY_PASSWORD
    if "train" in plan.roles and plan.peer:
        yield from (home.secrets / name for name in KEYS)
    if plan.server_key:
        yield home.secrets / "known_hosts"
    if plan.data_public_key and plan.command_public_key:
        yield home.secrets / AUTHORIZED_KEYS
    if scheme(plan) == "rediss":
        yield home.secrets / AUTHORITY_NAME
    if plan.is_signed or plan.signing_keys:
        yield home.signing / signing.KEY_NAME


def _secrets(plan: HostPlan, *, home: Home) -> Iterator[tuple[Path, str, int]]:
    password = plan.redis_password or home.secret("redis_password")
    yield home.secrets / "redis_password", password + "\n", SECRET_MODE
    yield home.secrets / "redis.acl", acl_text(password), SECRET_MODE
    yield home.secrets / REGISTRY_PASSWORD, _registry_password(plan, home=home), SECRET_MODE
    for name in ("server_admin_key", "server_read_key", "flower_password"):
        home.secret(name)
    if "train" in plan.roles and plan.peer:
        for name in KEYS:
            private, public = _key_pair(comment=f"{name}@{plan.name}" if plan.name else name)
            yield home.secrets / name, private, SECRET_MODE
            yield home.secrets / f"{name}.pub", public, PUBLIC_MODE
    if plan.server_key and plan.peer:
        line = known_hosts_line(host=plan.peer, port=plan.peer_port, public_key=plan.server_key)
        yield home.secrets / "known_hosts", line, PUBLIC_MODE
    if plan.data_public_key and plan.command_public_key:
        yield home.secrets / AUTHORIZED_KEYS, _authorized_keys(plan, home=home), PUBLIC_MODE
    yield from ((path, text, SECRET_MODE) for path, text in _certificates(plan, home=home))


def _registry_password(plan: HostPlan, *, home: Home) -> str:
    """Kept where there is one: the database keeps that with which it was made.

    Empty where no database is known: docker-compose 1.29 warns of a secret without a file at every command.
    """
    path = home.secrets / REGISTRY_PASSWORD
    kept = path.read_text() if path.is_file() else ""
    if plan.registry_password:
        return plan.registry_password + "\n"
    if plan.has_postgresql and not kept.strip():
        path.unlink(missing_ok=True)
        return home.secret(REGISTRY_PASSWORD) + "\n"
    return kept


def _certificates(plan: HostPlan, *, home: Home) -> Iterator[tuple[Path, str]]:
    now = datetime.now(UTC)
    if plan.has_tls:
        files = make_server_files((plan.redis_address, "localhost", "127.0.0.1"), now=now)
        texts = (files.server.key, files.server.certificate, files.authority)
        names = (*SERVER_NAMES, AUTHORITY_NAME)
        yield from ((home.run / "redis" / name, text) for name, text in zip(names, texts, strict=True))
        yield home.secrets / AUTHORITY_NAME, files.authority
    elif plan.redis_authority:
        yield home.secrets / AUTHORITY_NAME, plan.redis_authority.rstrip() + "\n"
    if plan.is_signed:
        pair = make_signing_pair("-".join(plan.roles), now=now)
        yield home.signing / signing.KEY_NAME, pair.key
        yield home.signing / signing.CERTIFICATE_NAME, pair.certificate
        yield home.signing / signing.TRUSTED_NAME / f"{'-'.join(plan.roles)}.pem", pair.certificate
    elif plan.signing_keys:
        yield from _copied(plan.signing_keys, into=home.signing)


def _copied(source: Path, *, into: Path) -> Iterator[tuple[Path, str]]:
    try:
        for path in sorted(path for path in source.rglob("*.pem") if path.is_file()):
            yield into / path.relative_to(source), path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StackError(f"The signing keys in {source} cannot be read: {error}.") from None


def _authorized_keys(plan: HostPlan, *, home: Home) -> str:
    """The training host's two keys, each held to its one purpose."""
    lines = authorized_keys(
        config_path=home.run / GATE_NAME,
        incoming_dir=home.incoming,
        python=plan.python,
        data_public_key=plan.data_public_key or "",
        command_public_key=plan.command_public_key or "",
        has_rsync=plan.has_rsync,
    )
    return "\n".join(lines) + "\n"


def _key_pair(*, comment: str) -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), f"{public.decode()} {comment}\n"


def _refuse_overwriting(paths: list[Path], *, force: bool) -> None:
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        raise StackError(
            f"{existing[0]} exists already; nothing was written.",
            remedy="--force writes it anew: the keys change; Redis keeps its password if none is given, and "
            ".env what was added to it. "
            "--add makes one more --peer known and changes nothing else.",
        )


def _write(path: Path, *, text: str, mode: int) -> Path:
    write_atomically(path, content=text.encode(), mode=mode)
    return path


def _give_away(plan: HostPlan, *, home: Home, also: Path) -> None:
    """Where root prepares a host, the files belong to those who run on it."""
    if os.geteuid() != 0:
        return
    for path in (home.root, *home.root.rglob("*"), also):
        os.chown(path, plan.uid, plan.gid, follow_symlinks=False)
