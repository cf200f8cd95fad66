"""Commands about hosts: `drain` and `undrain`."""

from __future__ import annotations

from typing import Annotated

import typer

from registry.messages import ASKED, DrainedHost
from tasks.api import Tandem
from tasks.cli.output import console, print_json

HostName = Annotated[str | None, typer.Argument(help="As `tandem status` names it; the only one by default.")]
Reason = Annotated[str, typer.Option(help="Why; shown wherever the host is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.command("drain")(drain)
    cli.command("undrain")(undrain)


def drain(
    host: HostName = None,
    after: Annotated[
        str | None, typer.Option(help="Let it work on until this job is done: pause after this job.")
    ] = None,
    reason: Reason = ASKED,
    as_json: Json = False,
) -> None:
    """Let a host finish what it works on and take nothing new."""
    drained = Tandem().drain(host, after_job=after, reason=reason)
    if as_json:
        print_json(drained)
        return
    console.print(_sentence(drained), markup=False)


def undrain(host: HostName = None, reason: Reason = ASKED, as_json: Json = False) -> None:
    """Let a host take work again."""
    drained = Tandem().undrain(host, reason=reason)
    if as_json:
        print_json(drained)
        return
    console.print(f"{drained.host.id} takes work again.")


def _sentence(drained: DrainedHost) -> str:
    if drained.is_in_effect:
        return f"{drained.host.id}: drain is in effect; it works on nothing."
    return f"{drained.host.id}: drain is asked for; {drained.missing}."
