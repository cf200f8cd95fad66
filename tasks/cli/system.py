"""Commands about the whole: `status`, `config show`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from config.settings import load_settings, setting_lines
from tasks.api import Tandem
from tasks.cli.output import console, print_json, print_status

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

config_commands = typer.Typer(help="Settings.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.command("status")(status)
    cli.add_typer(config_commands, name="config")


def status(as_json: Json = False) -> None:
    """What each part is doing, and `unknown` where nothing says so."""
    found = Tandem().status()
    if as_json:
        print_json(found)
    else:
        print_status(found)


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
