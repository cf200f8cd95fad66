"""Commands about checkpoints and suites: `checkpoint list|show|compare|import`, `suite build|show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from registry import lineage
from registry.calibrations import Calibration
from registry.errors import NotFound
from registry.records import Checkpoint, Event, Record, Verdict
from registry.reports import AccuracyReport
from tasks.api import Tandem
from tasks.cli.calibration import print_calibrations
from tasks.cli.comparison import checkpoint_compare
from tasks.cli.harness import checkpoint_lm_eval
from tasks.cli.output import checkpoints_table, console, print_json, styled
from tasks.cli.rejudging import checkpoint_rejudge
from tasks.cli.verdicts import print_report, print_verdict
from workers.status import checkpoint_lines

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

checkpoint_commands = typer.Typer(help="Checkpoints, their numbers and verdicts.", no_args_is_help=True)
suite_commands = typer.Typer(help="The validation suite.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.add_typer(checkpoint_commands, name="checkpoint")
    cli.add_typer(suite_commands, name="suite")


@checkpoint_commands.command("list")
def checkpoint_list(as_json: Json = False) -> None:
    """Every checkpoint with loss, accuracy, verdict and rank."""
    with Tandem().context.registry.reading() as tx:
        lines = checkpoint_lines(tx)
    if as_json:
        print_json(lines)
        return
    console.print(checkpoints_table(lines) if lines else "There are no checkpoints yet.")


@checkpoint_commands.command("show")
def checkpoint_show(checkpoint_id: str, as_json: Json = False) -> None:
    """One checkpoint: where it came from, its verdict and why."""
    context = Tandem().context
    with context.registry.reading() as tx:
        checkpoint = tx.get(Checkpoint, checkpoint_id)
        lines = [line for line in checkpoint_lines(tx) if line.id == checkpoint_id]
        verdicts = tx.find(Verdict, checkpoint_id=checkpoint_id, newest_first="decided_at")
        reports = tx.find(AccuracyReport, checkpoint_id=checkpoint_id, newest_first="made_at")
        calibrations = tx.find(Calibration, checkpoint_id=checkpoint_id, newest_first="decided_at")
        events = sorted(tx.find(Event, subject_id=checkpoint_id), key=lambda event: event.id or 0)
    if as_json:
        rows: dict[str, Sequence[Record]] = {
            "verdicts": verdicts,
            "accuracy": reports,
            "calibrations": calibrations,
            "events": events,
            "status": lines,
        }
        shown = {name: [item.model_dump(mode="json") for item in items] for name, items in rows.items()}
        print_json({"checkpoint": checkpoint.model_dump(mode="json"), **shown})
        return
    console.print(checkpoints_table(lines))
    console.print(f"path {checkpoint.path}\nparent {checkpoint.parent_checkpoint_id or '–'}", markup=False)
    for verdict in verdicts:
        print_verdict(verdict)
    for report in reports:
        print_report(report)
    print_calibrations(calibrations, directory=context.settings.paths.reliability)
    for event in events:
        step = f"{event.before or '–'} -> {event.after}"
        console.print(f"{event.at:%H:%M:%S}  {step:26} {event.reason}", markup=False)


checkpoint_commands.command("compare")(checkpoint_compare)
checkpoint_commands.command("lm-eval")(checkpoint_lm_eval)
checkpoint_commands.command("rejudge")(checkpoint_rejudge)


@checkpoint_commands.command("import")
def checkpoint_import(
    path: Annotated[Path, typer.Argument(help="Hugging Face model directory.")],
    as_base: Annotated[bool, typer.Option("--as-base", help="Make it the base model.")] = False,
    note: Annotated[str, typer.Option(help="What it is.")] = "",
    as_json: Json = False,
) -> None:
    """Register a model directory as a candidate, to be judged like any other."""
    checkpoint = Tandem().import_checkpoint(path, as_base=as_base, note=note)
    if as_json:
        print_json(checkpoint)
    else:
        console.print(f"{checkpoint.id} {styled(checkpoint.state)} ({checkpoint.origin})")


@suite_commands.command("build")
def suite_build(
    path: Annotated[Path, typer.Argument(help="JSONL file; rows may bear difficulty and tags.")],
    name: Annotated[str, typer.Option(help="Name to show.")] = "validation",
    scorer: Annotated[str, typer.Option(help="Judges the rows that name no scorer.")] = "",
    as_json: Json = False,
) -> None:
    """Make a file the active validation suite. It is copied; edits to the file change nothing."""
    suite = Tandem().build_suite(path, name=name, scorer=scorer)
    if as_json:
        print_json(suite)
    else:
        levels = ", ".join(f"{level} {count}" for level, count in sorted(suite.num_by_difficulty.items()))
        console.print(f"{suite.id}: {suite.num_rows} rows ({levels})", markup=False)


@suite_commands.command("show")
def suite_show(as_json: Json = False) -> None:
    """The active suite."""
    with Tandem().context.registry.reading() as tx:
        suite = lineage.active_suite(tx)
    if suite is None:
        raise NotFound("No suite is active.", remedy="`tandem suite build FILE` makes one.")
    if as_json:
        print_json(suite)
    else:
        console.print(f"{suite.id} {suite.name}: {suite.num_rows} rows, {suite.path}", markup=False)
