"""What a training job would need of a device, before it is queued."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field

from registry.model_shapes import ModelShape
from registry.records import Record
from trainer.dataset_shape import BatchSettings, DatasetShape, RowSettings
from trainer.errors import ConfigError
from trainer.estimate import TrainingMemory, TrainingMode, largest_token_budget, training_memory

UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}


class TrainingPlan(Record):
    """A step's memory beside what a device has, and the largest budget that is safe there."""

    capacity_bytes: int = Field(ge=0)
    reserve_bytes: int = Field(ge=0)
    mode: TrainingMode
    num_processes: int = Field(default=1, ge=1, description="each has a share of a batch, and a card")
    tokens_per_batch: int = Field(ge=1, description="of all processes together")
    memory: TrainingMemory = Field(description="of one process")
    fits: bool
    largest_tokens: int = Field(ge=0, description="the largest safe tokens_per_batch; 0: nothing fits")
    plain_peak_bytes: int = Field(ge=0, description="with the logits of all answers at once")
    plain_largest_tokens: int = Field(ge=0, description="the largest safe tokens_per_batch with those")
    dataset: DatasetShape | None = None
    note: str = ""


def training_plan(
    shape: ModelShape,
    *,
    capacity_bytes: int,
    reserve_bytes: int,
    tokens_per_batch: int,
    mode: TrainingMode,
    num_processes: int = 1,
    dataset: DatasetShape | None = None,
) -> TrainingPlan:
    """Of a step on one of as many cards; without a dataset every token counts as learnt."""
    share = 1.0 if dataset is None else dataset.answer_share
    own_tokens = max(1, tokens_per_batch // num_processes)
    num_tokens = own_tokens if dataset is None else dataset.largest_batch_tokens
    num_answers = -int(-share * num_tokens // 1)
    memory = training_memory(shape, num_tokens=num_tokens, num_answers=num_answers, mode=mode)
    available = max(0, capacity_bytes - reserve_bytes)
    largest = largest_token_budget(shape, capacity_bytes=available, mode=mode, answer_share=share)
    plain = mode.changed(cross_entropy="plain")
    return TrainingPlan(
        capacity_bytes=capacity_bytes,
        reserve_bytes=reserve_bytes,
        mode=mode,
        num_processes=num_processes,
        tokens_per_batch=tokens_per_batch,
        memory=memory,
        fits=memory.peak <= available,
        largest_tokens=largest * num_processes,
        plain_peak_bytes=training_memory(
            shape, num_tokens=num_tokens, num_answers=num_answers, mode=plain
        ).peak,
        plain_largest_tokens=num_processes
        * largest_token_budget(shape, capacity_bytes=available, mode=plain, answer_share=share),
        dataset=dataset,
        note=_note(largest, dataset=dataset),
    )


def parse_bytes(text: str) -> int:
    """`24GB`, `24 GiB` or a number of bytes; `ConfigError` where it is neither."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise ConfigError(
            f"{text!r} is no amount of memory.", field="card", value=text, remedy="Write it as 24GB or 24GiB."
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


def read_dataset_shape(
    path: Path,
    *,
    model: Path,
    rows: RowSettings,
    batches: BatchSettings,
    token_cache_dir: Path,
    max_bytes: int,
) -> DatasetShape:
    """Tokenise a file as training would, and keep the tokens for it. Loads torch."""
    # torch and transformers take seconds, and who asks without a dataset needs neither.
    from trainer.core.measure import measure_dataset

    return measure_dataset(
        path, model=model, rows=rows, batches=batches, token_cache_dir=token_cache_dir, max_bytes=max_bytes
    )


def _note(largest: int, *, dataset: DatasetShape | None) -> str:
    if not largest:
        return "The model's weights, gradients and moments alone do not fit."
    if dataset is not None and dataset.longest_row_tokens > largest:
        return (
            f"Row {dataset.longest_row} has {dataset.longest_row_tokens} tokens, more than fit at once: "
            "lower max_length."
        )
    return ""
