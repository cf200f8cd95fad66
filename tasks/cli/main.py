"""`tandem`: the command line. Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import sys

import typer

from config.errors import SettingsError
from registry.errors import TandemError
from tasks.cli import (
    checkpoints,
    containers,
    data,
    deployment,
    events,
    hosts,
    jobs,
    planning,
    stack,
    system,
)
from tasks.cli.output import error_console
from workers.errors import RequestError

FAILED, USAGE = 1, 2

cli = typer.Typer(
    name="tandem",
    help="Keeps two GPU hosts busy improving a small language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (stack, jobs, planning, hosts, checkpoints, deployment, data, events, containers, system):
    room.register(cli)


def main() -> None:
    """Run a command; every expected error is one sentence on standard error."""
    try:
        cli()
    except (SettingsError, RequestError) as error:
        _fail(str(error), code=USAGE)
    except TandemError as error:
        _fail(str(error), code=FAILED)


def _fail(message: str, *, code: int) -> None:
    error_console.print(f"tandem: {message}", markup=False, highlight=False)
    sys.exit(code)
