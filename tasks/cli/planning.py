"""`train --plan`: what a training job would need, and what a card could take. Works without a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.table import Table

from config.settings import Settings, load_settings
from registry.model_shapes import read_shape
from tasks.cli.output import console, print_json
from tasks.cli.pairs import parse_pairs
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import Overlong, check_hyperparameters
from trainer.config.pinned import profile_named
from trainer.dataset_shape import BatchSettings, DatasetShape, RowSettings
from trainer.plan import TrainingPlan, parse_bytes, read_dataset_shape, training_plan
from workers.admission import kind_of, training_mode
from workers.devices import GIGABYTE, open_device
from workers.errors import RequestError

PARTS = {
    "weights": "float32; beside adapters, matrices that stay are bfloat16 where products are",
    "half_weights": "bfloat16 copies, until the backward pass",
    "gradients": "float32",
    "optimizer": "AdamW's two moments, float32",
    "activations": "kept for the backward pass",
    "attention": "the same, inside attention",
    "backward": "gradients of activations, while needed",
    "loss": "logits and their gradients, a chunk at a time where they are many",
    "allocator": "what allocators hold beyond what was asked",
    "snapshot": "copy of weights and moments, while a checkpoint is written",
    "runtime": "Python, PyTorch and the driver's context",
}


def register(cli: typer.Typer) -> None:
    """Add this room's command."""
    cli.command("train")(train)


def train(
    dataset: Annotated[Path | None, typer.Argument(help="JSONL file, to count its own tokens.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what training would need.")] = False,
    card: Annotated[str | None, typer.Option(help="A card's memory, such as 24GB; else this host's.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model directory; the base model if left out.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Hyperparameter, as `submit` takes it: adapter=lora.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Of the rows; the host's own if left out.")] = None,
    overlong: Annotated[
        str | None, typer.Option(help="Rows over max_length: drop, truncate or reject; the host's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the memory of a training step and the largest safe token budget (`--plan`)."""
    if not plan:
        raise RequestError(
            "Training goes through the queue.", remedy="`tandem submit FILE`; `tandem train --plan` plans it."
        )
    settings = load_settings()
    rows = _rows(settings, profile=profile, overlong=overlong)
    hyperparameters = check_hyperparameters({**settings.training.hyperparameters, **parse_pairs(set_ or [])})
    found = _plan(
        settings,
        model=model or settings.paths.base_model,
        dataset=dataset,
        card=card,
        hyperparameters=hyperparameters,
        rows=rows,
    )
    if as_json:
        print_json(found)
    else:
        _print(found)


def _rows(settings: Settings, *, profile: str | None, overlong: str | None) -> RowSettings:
    training = settings.training
    if overlong is not None and overlong not in get_args(Overlong):
        raise RequestError(f"--overlong {overlong!r} is none of {', '.join(get_args(Overlong))}.")
    return RowSettings(
        profile=profile_named(profile or training.profile).name,
        max_length=training.max_length,
        overlong=cast("Overlong", overlong) if overlong else training.overlong,
    )


def _plan(
    settings: Settings,
    *,
    model: Path,
    dataset: Path | None,
    card: str | None,
    hyperparameters: Hyperparameters,
    rows: RowSettings,
) -> TrainingPlan:
    training, tokens = settings.training, hyperparameters.tokens_per_batch
    if card is not None:
        capacity_bytes, mode = parse_bytes(card), training_mode(training, kind="cuda")
    else:
        capacity_bytes = open_device(training.device).use().total_bytes
        mode = training_mode(training, kind=kind_of(training.device))
    measured = None
    if dataset is not None:
        measured = read_dataset_shape(
            dataset,
            model=model,
            rows=rows,
            batches=BatchSettings(
                tokens_per_batch=tokens,
                num_processes=training.num_processes,
                may_be_packed=mode.device == "cuda",
            ),
            token_cache_dir=settings.paths.token_cache,
            max_bytes=training.max_token_cache_bytes,
        )
    return training_plan(
        read_shape(model),
        capacity_bytes=capacity_bytes,
        reserve_bytes=settings.guard.reserve_bytes,
        tokens_per_batch=tokens,
        mode=mode.changed(adapter=hyperparameters.adapter),
        num_processes=training.num_processes,
        dataset=measured,
    )


def _print(plan: TrainingPlan) -> None:
    learnt = " of LoRA" if plan.mode.adapter else ""
    checkpointed = "with" if plan.mode.checkpoints_gradients else "without"
    table = Table(
        title=f"One step{learnt} in {plan.mode.arithmetic}, {checkpointed} gradient checkpointing",
        title_justify="left",
    )
    table.add_column("part")
    table.add_column("GB", justify="right")
    table.add_column("what it is")
    for name, meaning in PARTS.items():
        table.add_row(name, f"{getattr(plan.memory, name) / GIGABYTE:.2f}", meaning)
    table.add_row(
        "[bold]peak[/]", f"{plan.memory.peak / GIGABYTE:.2f}", "at the worst moment; parts do not all meet"
    )
    console.print(table)
    if plan.dataset is not None:
        _print_shape(plan.dataset)
    if plan.num_processes > 1:
        console.print(
            f"{plan.num_processes} processes share each batch, each on a card of its own: memory is that of "
            "one, tokens_per_batch that of all together"
        )
    verdict = "fits" if plan.fits else "does not fit whole and would be split"
    console.print(
        f"tokens_per_batch = {plan.tokens_per_batch} {verdict} in {plan.capacity_bytes / GIGABYTE:.1f} GB "
        f"({plan.reserve_bytes / GIGABYTE:.1f} GB left free); the largest safe one is {plan.largest_tokens}"
    )
    console.print(
        f"environment.cross_entropy = {plan.mode.cross_entropy}; with all logits at once (plain) the peak "
        f"would be {plan.plain_peak_bytes / GIGABYTE:.2f} GB and the largest safe one "
        f"{plan.plain_largest_tokens}"
    )
    if plan.note:
        console.print(plan.note)


def _print_shape(shape: DatasetShape) -> None:
    console.print(
        f"{shape.num_rows} rows ({shape.num_dropped_rows} left out as too long, "
        f"{shape.num_truncated_rows} cut off), {shape.num_tokens} tokens of which "
        f"{shape.num_answers} are learnt, {shape.num_steps} steps an epoch; the longest row is "
        f"{shape.longest_row} with {shape.longest_row_tokens} tokens"
    )
