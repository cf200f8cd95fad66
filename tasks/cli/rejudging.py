"""`tandem checkpoint rejudge`: what the scorers say now of the replies that are kept."""

from __future__ import annotations

from typing import Annotated

import typer

from registry.records import EvaluationSummary
from tasks.api import Tandem
from tasks.cli.output import console, print_json
from workers.rejudging import rejudge

MAX_SHOWN = 20


def checkpoint_rejudge(
    checkpoint_id: str,
    scorer: Annotated[str, typer.Option(help="Judge every row by it, to try a scorer out.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge a stored evaluation anew, without a model. Shows what differs and changes nothing."""
    found = rejudge(Tandem().context.registry, checkpoint_id=checkpoint_id, scorer=scorer)
    if as_json:
        print_json(found)
        return
    console.print(f"before: {_told(found.before)}\nnow:    {_told(found.now)}", markup=False)
    for example in found.differing[:MAX_SHOWN]:
        verdict = example.problem or ("correct" if example.is_correct else "wrong")
        texts = f"{example.expected[:40]!r} / {example.answer[:40]!r}"
        console.print(f"{example.row_id}  {texts}: {verdict} ({example.scorer})", markup=False)
    if len(found.differing) > MAX_SHOWN:
        console.print(f"... and {len(found.differing) - MAX_SHOWN} more; --json names all")


def _told(summary: EvaluationSummary) -> str:
    if summary.is_wholly_unknown:
        return f"accuracy unknown, as is every one of n={summary.num_examples} answers"
    accuracy = summary.accuracy
    interval = f"{accuracy.low:.1%} to {accuracy.high:.1%}, n={summary.num_examples}"
    return f"accuracy {accuracy.value:.1%} ({interval}), {summary.num_unknown} unknown"
