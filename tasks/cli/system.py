"""Commands about the whole: `status`, `config show`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table

from config.editing import set_setting
from config.origins import origin_of
from config.settings import Settings, load_settings, setting_lines
from tasks.api import Tandem
from tasks.cli.output import console, print_json, print_status
from trainer.config.job import JobConfig
from workers.errors import RequestError

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
def config_show(
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: Json = False,
) -> None:
    """Every setting with its value and its environment variable. Secrets are masked."""
    lines = setting_lines(load_settings())
    origins = {name: str(origin_of(name)) for name, _ in lines} if origin else {}
    if as_json:
        values = {name: json.loads(value) for name, value in lines}
        told = (
            {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
            if origin
            else values
        )
        print_json(told)
        return
    table = Table()
    for column in ("setting", "value", *(["origin"] if origin else [])):
        table.add_column(column, overflow="fold")
    for name, value in lines:
        table.add_row(name, value, *([origins[name]] if origin else []))
    console.print(table)


@config_commands.command("set")
def config_set(
    key: Annotated[str, typer.Argument(help="section.name, such as hyperparameters.learning_rate.")],
    value: Annotated[str, typer.Argument(help="Its value.")],
    unlock: Annotated[bool, typer.Option("--unlock", help="Change a locked key.")] = False,
) -> None:
    """Write a setting to tandem.toml, checked first. New jobs use it; those submitted keep what they have."""
    setting, warning = set_setting(key, value, is_unlocked=unlock)
    console.print(f"{setting} = {value}", markup=False, highlight=False)
    if warning:
        console.print(f"Warning: {warning}", markup=False, highlight=False)


@config_commands.command("schema")
def config_schema(
    of: Annotated[str, typer.Option(help="job: a trainer's job file; settings: tandem.toml.")] = "job",
) -> None:
    """JSON Schema, for editors."""
    models: dict[str, type[BaseModel]] = {"job": JobConfig, "settings": Settings}
    if of not in models:
        raise RequestError(f"--of {of!r} is neither job nor settings.")
    print_json(models[of].model_json_schema())
