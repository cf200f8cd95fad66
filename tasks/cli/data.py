"""Commands about data files: `data validate`, `data convert`. They work without a running stack."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from config.settings import load_settings
from registry import lineage
from registry.errors import DatasetError
from registry.records import Suite
from registry.rows import ChatRow, read_rows
from registry.schema import check_schema
from registry.store import Registry
from tasks.cli.output import console, print_json
from trainer.config.pinned import profile_named
from workers.conversion import convert
from workers.intake import overlaps_with, refuse_unfit

data_commands = typer.Typer(help="Data files.", no_args_is_help=True)
MAX_NAMED = 10
Profile = Annotated[str | None, typer.Option("--profile", help="Check that every row fits this profile.")]


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.add_typer(data_commands, name="data")


@data_commands.command("validate")
def data_validate(
    path: Annotated[Path, typer.Argument(help="JSONL file.")],
    profile: Profile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every row, and that none stands in the validation suite. Exit 1 at the first bad row."""
    rows = list(read_rows(path))
    if profile is not None:
        refuse_unfit(rows, name=path.name, profile=profile_named(profile))
    suite = _active_suite()
    limits = load_settings().contamination
    overlap = [] if suite is None else overlaps_with(path, suite=suite, limits=limits)
    report = {
        "file": str(path),
        "num_rows": len(rows),
        "num_turns": sum(len(row.messages) for row in rows),
        "num_repeated": _num_repeated(rows),
        "num_in_suite": None if suite is None else len(overlap),
    }
    if as_json:
        print_json(report)
    else:
        in_suite = "no suite is active" if suite is None else f"{len(overlap)} in the validation suite"
        console.print(f"{len(rows)} rows, {report['num_repeated']} repeated, {in_suite}")
    if overlap:
        named = ", ".join(map(str, overlap[:MAX_NAMED])) + (", ..." if overlap[MAX_NAMED:] else "")
        raise DatasetError(
            f"{path}: {len(overlap)} rows are also in the validation suite: {named}.",
            remedy="Remove them: accuracy on rows that were trained on means nothing.",
        )


@data_commands.command("convert")
def data_convert(
    path: Annotated[Path, typer.Argument(help="Rows in any accepted form: JSONL, or a JSON array.")],
    target: Annotated[Path, typer.Argument(help="JSONL file of messages to write; must not exist.")],
    profile: Profile = None,
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Leave unusable rows out, and name them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the rows as messages. A profile decides which rows fit; it is applied when they are learnt."""
    chosen = None if profile is None else profile_named(profile)
    report = convert(path, target=target, profile=chosen, drops_bad=drop_bad)
    if as_json:
        print_json(report)
        return
    for reason in report.problems[:MAX_NAMED]:
        console.print(f"left out: {reason}", markup=False, highlight=False)
    kinds = ", ".join(f"{count} {form}" for form, count in report.num_by_format.items())
    console.print(f"{report.num_rows} rows ({kinds}) to {target}; {report.num_left_out} left out")


def _num_repeated(rows: list[ChatRow]) -> int:
    return sum(count - 1 for count in Counter(row.messages for row in rows).values())


def _active_suite() -> Suite | None:
    settings = load_settings()
    if settings.registry_url is None and not settings.paths.database.exists():
        return None
    registry = Registry(settings.database_url)
    check_schema(registry)
    with registry.reading() as tx:
        return lineage.active_suite(tx)
