"""`checkpoint lm-eval`: lm-evaluation-harness's own tasks on a checkpoint, from local files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from registry.messages import ArtifactReference, EvaluationRequest
from registry.records import Checkpoint, GenerationSettings
from tasks.api import Tandem
from tasks.cli.output import console, print_json
from workers import admission
from workers.errors import DeviceBusy, RequestError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def checkpoint_lm_eval(
    checkpoint_id: str,
    task: Annotated[list[str], typer.Option("--task", help="Its name; more than one may be given.")],
    include: Annotated[Path, typer.Option(help="Directory with the tasks' YAML files.", exists=True)],
    limit: Annotated[int | None, typer.Option(min=1, help="Samples a task, the first ones.")] = None,
    as_json: Json = False,
) -> None:
    """Run tasks of lm-evaluation-harness on a checkpoint, here and now. Nothing is recorded."""
    if find_spec("lm_eval") is None:
        raise RequestError(
            "lm-evaluation-harness is not installed.", remedy="Install it: pip install 'tandem[lm-eval]'."
        )
    # Both load torch: only who asks for it pays.
    from inference.harness import run_tasks
    from inference.lm_eval_model import TandemLM

    context = Tandem().context
    request = _request(context.settings.evaluation.device, checkpoint=_checkpoint(checkpoint_id))
    with admission.to_evaluate(context, request) as obstacle:
        if obstacle:
            raise DeviceBusy(obstacle)
        model = TandemLM(request.model.path, device=request.device)
        results = run_tasks(model, tasks=task, include_dir=include, limit=limit)
    if as_json:
        print_json(results)
        return
    table = Table()
    for heading in ("task", "metric", "value", "standard error", "n"):
        table.add_column(heading)
    for one in results:
        error = "–" if one.standard_error is None else f"{one.standard_error:.4f}"
        table.add_row(escape(one.task), escape(one.metric), f"{one.value:.4f}", error, str(one.num_samples))
    console.print(table)


def _checkpoint(checkpoint_id: str) -> Checkpoint:
    with Tandem().context.registry.reading() as tx:
        return tx.get(Checkpoint, checkpoint_id)


def _request(device: str, *, checkpoint: Checkpoint) -> EvaluationRequest:
    """What the guard of the device looks at."""
    return EvaluationRequest(
        evaluation_id="",
        checkpoint_id=checkpoint.id,
        model=ArtifactReference(path=checkpoint.path, sha256=checkpoint.weights_sha256),
        suite_id="",
        suite=ArtifactReference(path="", sha256=""),
        settings=GenerationSettings(),
        device=device,
    )
