"""Commands for hosts that run tandem in containers: `init-host`, `part run`, `part check`, `doctor`."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import time
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from config.settings import load_settings
from tasks.cli.output import console, print_json, styled
from workers.app import app
from workers.doctor import examine, version_of
from workers.doctor_doors import door_findings
from workers.doctor_peers import peer_findings
from workers.errors import StackError
from workers.host_plan import IMAGE_UID, HostPlan, next_command
from workers.peers import add_peer
from workers.provision import AUTHORIZED_KEYS, provision
from workers.stack.single import check_part, run_part

Name = Annotated[
    str | None, typer.Option(help="Of this host, as ssh finds it too; its host name by default.")
]
Add = Annotated[bool, typer.Option("--add", help="One more --peer for a training host that is prepared.")]
Join = Annotated[bool, typer.Option("--join", help="A further training host; with --registry.")]
Tls = Annotated[bool, typer.Option("--tls", help="Redis speaks TLS; makes its certificate.")]
RedisCa = Annotated[
    Path | None, typer.Option(help="The training host's secrets/redis_ca.crt: its Redis speaks TLS.")
]
Signed = Annotated[bool, typer.Option("--signed", help="Sign messages; makes the key.")]
SigningKeys = Annotated[Path | None, typer.Option(help="The training host's secrets/signing, copied here.")]
Postgresql = Annotated[
    bool, typer.Option("--postgresql", help="The registry is a PostgreSQL, in a container here.")
]
RegistryUrl = Annotated[
    str | None, typer.Option(help="postgresql://USER@HOST:PORT/DATABASE: one that runs elsewhere.")
]
RegistryPassword = Annotated[Path | None, typer.Option(help="Of that user.")]
Redis = Annotated[
    str | None, typer.Option(help="The training host's address; 127.0.0.1 where all is on one machine.")
]
User = Annotated[
    str | None, typer.Option(help="Whose all of it is, where root prepares: the parts run as that account.")
]
Peer = Annotated[
    str | None, typer.Option(help="An intelligence host's name, by which ssh finds it; makes keys.")
]
PeerKeys = Annotated[
    Path | None, typer.Option(help="Where the training host's deploy_*_key.pub lie: it is let in.")
]
PeerHostKey = Annotated[Path | None, typer.Option(help="Its /etc/ssh/ssh_host_ed25519_key.pub, copied here.")]

OPTIONS = {
    "roles": "--role",
    "redis_address": "--redis",
    "redis_password": "--redis-password-file",
    "registry_url": "--registry",
    "registry_password": "--registry-password-file",
}
SECRETS = ("redis_password", "redis_authority", "server_key", "registry_url", "registry_password")
NAME_RULE = "Letters, digits and . _ - only, at most 64, the first and the last a letter or digit."
REGISTRY_RULE = "postgresql://USER@HOST:PORT/DATABASE, its password in a file: --registry-password-file FILE."
RULES = {"name": NAME_RULE, "peer": NAME_RULE, "redis_address": NAME_RULE, "registry_url": REGISTRY_RULE}
LOOPBACK = "127.0.0.1"
RSYNC = ("rsync", "rrsync")
BY_SFTP = (
    "Files come by SFTP, whole and slowly, and their key reads and writes what this account may: rsync or "
    "rrsync is missing here. Install rsync and repeat this with --force to hold that key to one directory."
)

part_commands = typer.Typer(help="One part alone, as a container runs it.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.command("init-host")(init_host)
    cli.command("doctor")(doctor)
    cli.add_typer(part_commands, name="part")


def init_host(
    role: Annotated[list[str], typer.Option("--role", help="train, intel; both on one machine.")],
    name: Name = None,
    directory: Annotated[Path, typer.Option(help="Where docker-compose.yml lies.")] = Path(),
    home: Annotated[Path, typer.Option(help="Runtime data.")] = Path("var"),
    redis: Redis = None,
    redis_port: Annotated[int, typer.Option(help="Its port.")] = 6390,
    redis_password_file: Annotated[Path | None, typer.Option(help="Of the training host.")] = None,
    tls: Tls = False,
    redis_ca: RedisCa = None,
    signed: Signed = False,
    signing_keys: SigningKeys = None,
    postgresql: Postgresql = False,
    registry: RegistryUrl = None,
    registry_password_file: RegistryPassword = None,
    peer: Peer = None,
    peer_port: Annotated[int, typer.Option(help="Of its ssh server.")] = 22,
    peer_host_key: PeerHostKey = None,
    peer_keys: PeerKeys = None,
    user: User = None,
    torch: Annotated[str, typer.Option(help="The build of PyTorch: cpu or cuda.")] = "cpu",
    add: Add = False,
    join: Join = False,
    force: Annotated[bool, typer.Option("--force", help="Write over what exists.")] = False,
) -> None:
    """Write what this host needs before its first start, and say the one next command."""
    plan = _plan(
        {"roles": tuple(dict.fromkeys(role)), "name": name, "torch": torch, "joins": join},
        {"directory": directory.resolve(), "home": home.expanduser().resolve()},
        {"redis_address": redis or LOOPBACK, "redis_port": redis_port},
        {"redis_password": _text(redis_password_file), "redis_authority": _text(redis_ca)},
        {"has_tls": tls, "is_signed": signed, "signing_keys": signing_keys},
        {"has_postgresql": postgresql, "registry_url": registry},
        {"registry_password": _text(registry_password_file)},
        {"peer": peer, "peer_port": peer_port, "server_key": _text(peer_host_key)},
        _public_keys(peer_keys),
        _owner(user, lets_in=peer_keys is not None),
    )
    _prepare(plan, adds=add, force=force, is_alone=redis is None)


@part_commands.command("run")
def part_run(name: str) -> None:
    """Become this part's process."""
    run_part(load_settings(), name=name, celery=app)


@part_commands.command("check")
def part_check(name: str) -> None:
    """Exit 0 where this part of this host does its work now, else 1 with the reason."""
    check_part(load_settings(), name=name, celery=app)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this host and its way to the other one; exit 1 where something failed."""
    settings = load_settings()
    findings = [
        *examine(settings),
        *door_findings(settings),
        *peer_findings(settings, version=version_of("tandem"), clock=time.time),
    ]
    if as_json:
        print_json(findings)
    else:
        table = Table()
        for heading in ("check", "state", "found", "remedy"):
            table.add_column(heading, overflow="fold")
        for finding in findings:
            table.add_row(finding.check, styled(finding.state), finding.found, finding.remedy)
        console.print(table)
    raise typer.Exit(1 if any(finding.state == "failed" for finding in findings) else 0)


def _prepare(plan: HostPlan, *, adds: bool, force: bool, is_alone: bool) -> None:
    if not adds:
        _refuse_strangers(plan, is_alone=is_alone)
    for path in add_peer(plan) if adds else provision(plan, force=force):
        _say(f"wrote {path}")
    if plan.data_public_key:
        keys = plan.home / "secrets" / AUTHORIZED_KEYS
        _say(f"Let the training host in{_as_whom(plan)}: cat {keys} >> ~/.ssh/authorized_keys")
        if not plan.has_rsync:
            _say(BY_SFTP)
    elif plan.roles == ("intel",):
        _say("The training host is not let in yet: --peer-keys, with --force, does that.")
    _say(f"Next: {next_command(plan)}")


def _refuse_strangers(plan: HostPlan, *, is_alone: bool) -> None:
    """Hosts that could never find each other, or not enter."""
    is_first = "train" in plan.roles and not plan.joins
    if is_alone and (plan.peer or not is_first):
        raise StackError(
            "The hosts meet at the training host's Redis, and no address of it is given.",
            remedy="--redis ADDRESS, the same on all of them; 127.0.0.1 only where a tunnel leads there.",
        )
    if plan.has_postgresql and not is_first:
        raise StackError(
            "The registry is the first training host's.",
            remedy="--postgresql is for that one; a further one has --join --registry URL.",
        )
    if not is_first and plan.redis_password is None:
        who = "A further training host" if plan.joins else "An intelligence host"
        raise StackError(
            f"{who} needs the training host's Redis password.",
            remedy="Copy its TANDEM_HOME/secrets/redis_password here, then --redis-password-file FILE.",
        )
    if plan.joins:
        _refuse_joining(plan)


def _refuse_joining(plan: HostPlan) -> None:
    """A further training host that could not do its one work."""
    if plan.roles != ("train",) or plan.peer:
        raise StackError(
            "A further training host trains and does nothing else.",
            remedy="--join goes with --role train and without --peer: the first one sends to those.",
        )
    if plan.registry_url is None:
        raise StackError(
            "A further training host needs the registry of the first, and that as PostgreSQL.",
            remedy="--registry URL, as TANDEM_REGISTRY_URL in the first one's .env has it, and "
            "--registry-password-file with its TANDEM_HOME/secrets/registry_password, copied here.",
        )


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _plan(*told: Mapping[str, object]) -> HostPlan:
    here = {
        "has_rsync": all(shutil.which(name) for name in RSYNC),
        "python": Path(sys.executable),
    }
    try:
        return HostPlan.model_validate({**ChainMap(here, *map(dict, told))})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = str(problem["loc"][0])
        value = "" if field in SECRETS else f" {problem['input']!r}"
        option = OPTIONS.get(field, "--" + field.replace("_", "-"))
        why = RULES.get(field, f"{problem['msg']}.")
        raise StackError(f"{option}{value} cannot be used.", remedy=why) from None


def _owner(user: str | None, *, lets_in: bool) -> dict[str, int]:
    """As whom the parts run, and whose their files are: the named account's, else whoever prepares."""
    me = os.geteuid()
    if user is None:
        if lets_in and me == 0:
            raise StackError(
                "Root prepares this host, and the account that the training host enters is not named.",
                remedy="--user NAME: the gate, which runs as that account, must reach what the parts write.",
            )
        return {"uid": me or IMAGE_UID, "gid": os.getegid() or IMAGE_UID}
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise StackError(f"There is no account {user!r} on this host.", remedy=f"useradd {user}") from None
    if account.pw_uid == 0:
        raise StackError("The parts never run as root.", remedy="--user with an account of their own.")
    if me not in (0, account.pw_uid):
        raise StackError(f"Only root prepares a host for {user}.", remedy=f"Run this as root or as {user}.")
    return {"uid": account.pw_uid, "gid": account.pw_gid}


def _as_whom(plan: HostPlan) -> str:
    return "" if os.geteuid() == plan.uid else f", as the user {pwd.getpwuid(plan.uid).pw_name}"


def _public_keys(directory: Path | None) -> dict[str, str | None]:
    if directory is None:
        return {}
    names = {"data_public_key": "deploy_data_key.pub", "command_public_key": "deploy_command_key.pub"}
    return {field: _text(directory / name) for field, name in names.items()}


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror}.") from None
