"""Commands about the embedded stack: `up`, `down`, `demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from config.settings import load_settings
from tasks.cli.output import console
from tasks.demo.run import run_demo
from workers.stack import control


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.command("up")(up)
    cli.command("down")(down)
    cli.command("demo")(demo)


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background.")] = False,
) -> None:
    """Start Redis, workers, beat, Flower and the inference server; Ctrl-C stops all of them."""
    settings = load_settings()
    if detach:
        control.start_in_background(settings)
        console.print("The stack is up. `tandem status` shows it, `tandem down` stops it.")
        return
    control.run_in_foreground(settings, console=console)


def down() -> None:
    """Stop the stack that runs in this home."""
    stopped = control.stop_running(load_settings())
    console.print(f"Stopped: {', '.join(stopped)}." if stopped else "No stack is up in this home.")


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up at the end.")] = False,
) -> None:
    """Run the whole loop on real input in a fresh home, in a few minutes on a CPU."""
    raise typer.Exit(run_demo(console=console, keep=keep))
