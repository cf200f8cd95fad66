"""Commands about the whole: `status`, `events`, `config show`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from config.settings import load_settings, setting_lines
from registry.records import Event
from tasks.api import Tandem
from tasks.cli.output import console, print_json, print_status

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

config_commands = typer.Typer(help="Settings.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.command("status")(status)
    cli.command("events")(events)
    cli.add_typer(config_commands, name="config")


def status(as_json: Json = False) -> None:
    """What each part is doing, and `unknown` where nothing says so."""
    found = Tandem().status()
    if as_json:
        print_json(found)
    else:
        print_status(found)


def events(
    subject: Annotated[str | None, typer.Argument(help="A job, checkpoint or release.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 30,
    as_json: Json = False,
) -> None:
    """Who changed what, when and why; newest last."""
    wanted: dict[str, Any] = {} if subject is None else {"subject_id": subject}
    with Tandem().context.registry.reading() as tx:
        found = tx.find(Event, newest_first="id", limit=limit, **wanted)[::-1]
    if as_json:
        print_json(found)
        return
    for event in found:
        step = f"{event.before or '–'} -> {event.after}"
        console.print(
            f"{event.at:%m-%d %H:%M:%S} {event.subject_id:28} {step:26} {event.reason}", markup=False
        )


@config_commands.command("show")
def config_show(as_json: Json = False) -> None:
    """Every setting with its value and its environment variable. Secrets are masked."""
    lines = setting_lines(load_settings())
    if as_json:
        print_json({name: json.loads(value) for name, value in lines})
        return
    table = Table()
    table.add_column("setting")
    table.add_column("value", overflow="fold")
    for name, value in lines:
        table.add_row(name, value)
    console.print(table)
