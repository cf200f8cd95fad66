"""`checkpoint compare A B`: what changed from one checkpoint to another, by how much, how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from registry.records import Comparison, Contrast, Flip
from tasks.api import Tandem
from tasks.cli.output import console, print_json
from workers.comparisons import Descent

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NUM_SHOWN = 5
MAX_TEXT = 60


def checkpoint_compare(
    left: Annotated[str, typer.Argument(help="Checkpoint, the one before.")],
    right: Annotated[str, typer.Argument(help="Checkpoint, the one after.")],
    num_shown: Annotated[
        int, typer.Option("--rows", min=0, help="Changed answers to show each way.")
    ] = NUM_SHOWN,
    as_json: Json = False,
) -> None:
    """Two checkpoints example by example: differences with intervals, slices, changed answers."""
    comparison, descent = Tandem().compare(left, right)
    if as_json:
        print_json({**comparison.model_dump(mode="json"), "descent": asdict(descent)})
        return
    console.print(
        f"{right} against {left}, {comparison.num_pairs} rows of {comparison.suite_id}", markup=False
    )
    console.print(_related(descent), markup=False)
    console.print(_table(comparison))
    for title, flips in (
        ("Right now, wrong before", comparison.gained),
        ("Wrong now, right before", comparison.lost),
    ):
        _print_flips(title, flips, num_shown=num_shown)
    console.print(conclusion(comparison), markup=False)


def conclusion(comparison: Comparison) -> str:
    """One sentence on each measure, as far as the interval carries it."""
    return " ".join(
        _sentence(name, contrast, more_is_better=more_is_better)
        for name, contrast, more_is_better in (
            ("loss", comparison.loss, False),
            ("accuracy", comparison.accuracy, True),
            ("score", comparison.score, True),
        )
    )


def _sentence(name: str, contrast: Contrast, *, more_is_better: bool) -> str:
    low, high = contrast.difference.low, contrast.difference.high
    if low <= 0 <= high:
        return f"The {name} may be the same."
    is_better = (low > 0) is more_is_better
    return f"The {name} is {'better' if is_better else 'worse'}."


def _related(descent: Descent) -> str:
    sides = (
        f"{name} was trained on {', '.join(datasets)}" if datasets else f"{name} on nothing more"
        for name, datasets in (("the first", descent.left_datasets), ("the second", descent.right_datasets))
    )
    since = descent.common_checkpoint_id
    return (f"Since {since}: " if since else "No common ancestor: ") + "; ".join(sides) + "."


def _table(comparison: Comparison) -> Table:
    table = Table()
    for heading in ("measure", "rows", "first", "second", "difference", "95 % interval", "p"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for name, contrast in (
        ("loss", comparison.loss),
        ("accuracy", comparison.accuracy),
        ("score", comparison.score),
    ):
        table.add_row(*_cells(name, contrast, num_rows=comparison.num_pairs))
    for found in comparison.slices:
        label = f"{found.kind} {found.name}"
        table.add_section()
        table.add_row(*_cells(f"{label}: loss", found.loss, num_rows=found.num_examples))
        table.add_row(*_cells(f"{label}: accuracy", found.accuracy, num_rows=found.num_examples))
    return table


def _cells(name: str, contrast: Contrast | None, *, num_rows: int) -> tuple[str, ...]:
    if contrast is None:
        return escape(name), str(num_rows), "–", "–", "too few rows", "–", "–"
    difference = contrast.difference
    return (
        escape(name),
        str(num_rows),
        f"{contrast.left:.3f}",
        f"{contrast.right:.3f}",
        f"{difference.value:+.3f}",
        f"{difference.low:+.3f} to {difference.high:+.3f}",
        "–" if contrast.p_value is None else f"{contrast.p_value:.2g}",
    )


def _print_flips(title: str, flips: Sequence[Flip], *, num_shown: int) -> None:
    console.print(f"{title}: {len(flips)}", markup=False)
    for flip in flips[:num_shown]:
        console.print(
            f"  {flip.row_id} ({flip.difficulty}) expected {_short(flip.expected)}: "
            f"{_short(flip.left_answer)} -> {_short(flip.right_answer)}",
            markup=False,
        )


def _short(text: str) -> str:
    """In quotes and on one line, cut where it is long."""
    return repr(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…")
