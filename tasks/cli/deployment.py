"""Commands about what is served: `deploy now|rollback|list`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from registry.messages import ASKED
from registry.records import Deployment
from registry.states import DeploymentState
from tasks.api import Tandem
from tasks.cli.output import console, print_json, styled
from workers.errors import TaskFailed

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

deploy_commands = typer.Typer(help="What is served.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.add_typer(deploy_commands, name="deploy")


@deploy_commands.command("now")
def deploy_now(
    checkpoint: Annotated[str | None, typer.Argument(help="Checkpoint; the best-ranked by default.")] = None,
    as_json: Json = False,
) -> None:
    """Serve the best-ranked checkpoint, or the named one; only accepted ones can be."""
    _report(Tandem().deploy(checkpoint), as_json=as_json)


@deploy_commands.command("rollback")
def deploy_rollback(
    release: Annotated[str | None, typer.Argument(help="Release; the one before by default.")] = None,
    reason: Annotated[str, typer.Option(help="For the record.")] = ASKED,
    as_json: Json = False,
) -> None:
    """Serve the release before."""
    _report(Tandem().rollback(release, reason=reason), as_json=as_json)


@deploy_commands.command("list")
def deploy_list(as_json: Json = False) -> None:
    """Every deployment, newest first."""
    with Tandem().context.registry.reading() as tx:
        deployments = tx.find(Deployment, newest_first="generation")
    if as_json:
        print_json(deployments)
        return
    table = Table()
    for heading in ("generation", "release", "checkpoint", "state", "reason", "problem"):
        table.add_column(heading, overflow="fold")
    for item in deployments:
        table.add_row(
            str(item.generation),
            item.id,
            item.checkpoint_id,
            styled(item.state),
            escape(item.reason),
            escape(item.problem),
        )
    console.print(table if deployments else "Nothing was deployed yet.")


def _report(deployment: Deployment, *, as_json: bool) -> None:
    if as_json:
        print_json(deployment)
    else:
        console.print(f"{deployment.id} {styled(deployment.state)}: {deployment.checkpoint_id}")
    if deployment.state is not DeploymentState.ACTIVE:
        raise TaskFailed(f"{deployment.id} {deployment.state}: {deployment.problem or 'no reason was given'}")
