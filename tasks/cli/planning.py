"""`train --plan`: what a training job would need, and what a card could take. Works without a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from config.settings import Settings, load_settings
from registry.model_shapes import read_shape
from tasks.cli.output import console, print_json
from tasks.cli.pairs import parse_pairs
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import check_hyperparameters
from trainer.estimate import TrainingMode
from trainer.plan import TrainingPlan, parse_bytes, read_dataset_shape, training_plan
from workers.admission import training_mode
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the memory of a training step and the largest safe token budget (`--plan`)."""
    if not plan:
        raise RequestError(
            "Training goes through the queue.", remedy="`tandem submit FILE`; `tandem train --plan` plans it."
        )
    settings = load_settings()
    hyperparameters = check_hyperparameters({**settings.training.hyperparameters, **parse_pairs(set_ or [])})
    found = _plan(
        settings,
        model=model or settings.paths.base_model,
        dataset=dataset,
        card=card,
        hyperparameters=hyperparameters,
    )
    if as_json:
        print_json(found)
    else:
        _print(found)


def _plan(
    settings: Settings,
    *,
    model: Path,
    dataset: Path | None,
    card: str | None,
    hyperparameters: Hyperparameters,
) -> TrainingPlan:
    training = settings.training
    tokens = max(1, hyperparameters.tokens_per_batch // training.num_processes)  # a card's share
    if card is not None:
        capacity_bytes, mode = parse_bytes(card), TrainingMode(cross_entropy=training.cross_entropy)
    else:
        capacity_bytes = open_device(training.device).use().total_bytes
        mode = training_mode(training.device, cross_entropy=training.cross_entropy)
    measured = None
    if dataset is not None:
        measured = read_dataset_shape(
            dataset,
            model=model,
            max_length=training.max_length,
            tokens_per_batch=tokens,
            token_cache_dir=settings.paths.token_cache,
            max_bytes=training.max_token_cache_bytes,
        )
    return training_plan(
        read_shape(model),
        capacity_bytes=capacity_bytes,
        reserve_bytes=settings.guard.reserve_bytes,
        tokens_per_batch=tokens,
        mode=mode.changed(adapter=hyperparameters.adapter),
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
        shape = plan.dataset
        console.print(
            f"{shape.num_rows} rows ({shape.num_dropped_rows} too long), {shape.num_tokens} tokens of which "
            f"{shape.num_answers} are learnt, {shape.num_steps} steps an epoch; the longest row is "
            f"{shape.longest_row} with {shape.longest_row_tokens} tokens"
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
