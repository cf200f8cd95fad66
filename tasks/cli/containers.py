"""Commands for hosts that run tandem in containers: `init-host`, `part run`, `part check`, `doctor`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from config.settings import load_settings
from tasks.cli.output import console, print_json, styled
from workers.app import app
from workers.doctor import examine, version_of
from workers.doctor_peers import peer_findings
from workers.errors import StackError
from workers.provision import AUTHORIZED_KEYS, IMAGE_UID, HostPlan, next_command, provision
from workers.stack.single import check_part, run_part

Tls = Annotated[bool, typer.Option("--tls", help="Redis speaks TLS; makes its certificate.")]
RedisCa = Annotated[
    Path | None, typer.Option(help="The training host's secrets/redis_ca.crt: its Redis speaks TLS.")
]
Signed = Annotated[bool, typer.Option("--signed", help="Sign messages; makes the key.")]
SigningKeys = Annotated[Path | None, typer.Option(help="The training host's secrets/signing, copied here.")]
PeerHostKey = Annotated[Path | None, typer.Option(help="Its /etc/ssh/ssh_host_ed25519_key.pub, copied here.")]

part_commands = typer.Typer(help="One part alone, as a container runs it.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.command("init-host")(init_host)
    cli.command("doctor")(doctor)
    cli.add_typer(part_commands, name="part")


def init_host(
    role: Annotated[list[str], typer.Option("--role", help="train, intel; both on one machine.")],
    directory: Annotated[Path, typer.Option(help="Where docker-compose.yml lies.")] = Path(),
    home: Annotated[Path, typer.Option(help="Runtime data.")] = Path("var"),
    redis: Annotated[str, typer.Option(help="The address at which Redis is reached.")] = "127.0.0.1",
    redis_port: Annotated[int, typer.Option(help="Its port.")] = 6390,
    redis_password_file: Annotated[Path | None, typer.Option(help="Of the training host.")] = None,
    tls: Tls = False,
    redis_ca: RedisCa = None,
    signed: Signed = False,
    signing_keys: SigningKeys = None,
    peer: Annotated[str | None, typer.Option(help="The intelligence host's name; makes keys.")] = None,
    peer_port: Annotated[int, typer.Option(help="Of its ssh server.")] = 22,
    peer_host_key: PeerHostKey = None,
    peer_keys: Annotated[Path | None, typer.Option(help="Where its deploy_*_key.pub lie.")] = None,
    torch: Annotated[str, typer.Option(help="The build of PyTorch: cpu or cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Write over what exists.")] = False,
) -> None:
    """Write what this host needs before its first start, and say the one next command."""
    _refuse_strangers(role, redis_password_file=redis_password_file)
    plan = _plan(
        roles=tuple(dict.fromkeys(role)),
        directory=directory.resolve(),
        home=home.expanduser().resolve(),
        redis_address=redis,
        redis_port=redis_port,
        redis_password=_text(redis_password_file),
        has_tls=tls,
        redis_authority=_text(redis_ca),
        is_signed=signed,
        signing_keys=signing_keys,
        peer=peer,
        peer_port=peer_port,
        server_key=_text(peer_host_key),
        data_public_key=_text(peer_keys and peer_keys / "deploy_data_key.pub"),
        command_public_key=_text(peer_keys and peer_keys / "deploy_command_key.pub"),
        python=Path(sys.executable),
        torch=torch,
    )
    _prepare(plan, lets_in=peer_keys is not None, force=force)


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


def _refuse_strangers(roles: Sequence[str], *, redis_password_file: Path | None) -> None:
    if "train" not in roles and redis_password_file is None:
        raise StackError(
            "An intelligence host needs the training host's Redis password.",
            remedy="Copy its TANDEM_HOME/secrets/redis_password here, then --redis-password-file FILE.",
        )


def _prepare(plan: HostPlan, *, lets_in: bool, force: bool) -> None:
    for path in provision(plan, force=force):
        _say(f"wrote {path}")
    if lets_in:
        keys = plan.home / "secrets" / AUTHORIZED_KEYS
        _say(f"Let the training host in: cat {keys} >> ~/.ssh/authorized_keys")
    _say(f"Next: {next_command(plan)}")


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _plan(**fields: object) -> HostPlan:
    owner = {"uid": os.getuid() or IMAGE_UID, "gid": os.getgid() or IMAGE_UID}
    try:
        return HostPlan.model_validate({**fields, **owner})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise StackError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from None


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror}.") from None
