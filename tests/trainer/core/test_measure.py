"""A dataset measured for a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config.job import JobConfig
from trainer.core import measure
from trainer.core.batching import BatchPlan
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset
from trainer.core.engine import TrainerEngine
from trainer.core.loss import collate
from trainer.core.measure import measure_dataset, shape_of
from trainer.core.models import load_tokenizer
from trainer.core.token_cache import TokenCache
from trainer.dataset_shape import BatchSettings, RowSettings
from trainer.plan import read_dataset_shape

CPU = torch.device("cpu")
ROWS = RowSettings(profile="plain_sft", max_length=128, overlong="drop")
BATCHES = BatchSettings(tokens_per_batch=200)


def test_what_is_measured_is_what_the_batches_hold(dataset: TokenizedDataset) -> None:
    shape = shape_of(dataset, batches=BATCHES)
    plan = BatchPlan(lengths=dataset.lengths, tokens_per_batch=200, num_epochs=1, seed=0)
    batches = [collate(dataset, indices=plan.batch(step), device=CPU) for step in range(plan.num_steps)]
    assert shape.num_steps == len(batches)
    assert shape.num_answers == sum(batch.num_answers for batch in batches)
    assert shape.num_tokens == sum(batch.num_tokens for batch in batches)
    widths = [batch.input_ids.shape[0] * (batch.input_ids.shape[1] + 1) for batch in batches]
    assert shape.largest_batch_tokens == max(widths)
    shares = [batch.num_answers / width for batch, width in zip(batches, widths, strict=True)]
    assert shape.answer_share == max(shares)
    assert shape.longest_row_tokens == dataset.lengths.max()


def test_what_several_processes_share_is_measured_by_the_largest_share(dataset: TokenizedDataset) -> None:
    alone = shape_of(dataset, batches=BATCHES)
    shared = shape_of(dataset, batches=BATCHES.changed(num_processes=2))
    plan = BatchPlan(lengths=dataset.lengths, tokens_per_batch=200, num_epochs=1, seed=0)
    shares = [plan.batch(step)[rank::2] for step in range(plan.num_steps) for rank in range(2)]
    widths = [len(rows) * int(dataset.lengths[rows].max()) for rows in shares if len(rows)]
    assert shared.largest_batch_tokens == max(widths) < alone.largest_batch_tokens
    assert shared.num_steps == alone.num_steps


def test_packed_batches_are_measured_without_padding(dataset: TokenizedDataset) -> None:
    packed = shape_of(dataset, batches=BATCHES, is_packed=True)
    plan = BatchPlan(lengths=dataset.lengths, tokens_per_batch=200, num_epochs=1, seed=0, is_packed=True)
    sums = [int(dataset.lengths[plan.batch(step)].sum()) for step in range(plan.num_steps)]
    assert packed.largest_batch_tokens == max(sums)
    assert packed.num_steps == len(sums)


@pytest.mark.parametrize(
    ("may_be_packed", "suits", "is_packed"), [(True, True, 1), (True, False, 0), (False, True, 0)]
)
def test_batches_are_measured_as_the_card_and_the_model_will_have_them(
    rows_file: Path,
    model_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    may_be_packed: bool,
    suits: bool,
    is_packed: int,
) -> None:
    monkeypatch.setattr(measure, "suits_packing", lambda _model: suits)
    found = measure_dataset(
        rows_file,
        model=model_directory,
        rows=ROWS,
        batches=BATCHES.changed(may_be_packed=may_be_packed),
        token_cache_dir=tmp_path / "cache",
        max_bytes=1 << 30,
    )
    dataset = TokenCache(tmp_path / "cache", max_bytes=1 << 30, warn=pytest.fail).open(
        rows_file, encoder=ChatEncoder(load_tokenizer(model_directory)), max_length=128, overlong="drop"
    )
    assert found == shape_of(dataset, batches=BATCHES, is_packed=bool(is_packed))
    assert found != shape_of(dataset, batches=BATCHES, is_packed=not is_packed)


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
@pytest.mark.parametrize("profile", ["plain_sft", "regime3"])
def test_a_plan_leaves_the_tokens_that_the_run_looks_for(
    job: Callable[..., JobConfig],
    write_rows: Callable[..., Path],
    model_directory: Path,
    tmp_path: Path,
    profile: str,
    overlong: Any,
) -> None:
    rows = write_rows(
        [
            {"prompt": f"(ADD {number} {10**number})", "completion": str(10**number + number)}
            for number in range(1, 40, 4)
        ],
        name="forms.jsonl",
    )
    settings = {"path": str(rows), "overlong": overlong, "token_cache_dir": str(tmp_path / "cache")}
    config = job(data=settings, model={"max_length": 80}).changed(profile={"name": profile})
    shape = read_dataset_shape(
        rows,
        model=model_directory,
        rows=RowSettings(profile=profile, max_length=80, overlong=overlong),
        batches=BATCHES,
        token_cache_dir=tmp_path / "cache",
        max_bytes=1 << 30,
    )
    kept = entries(tmp_path / "cache")
    assert len(kept) == 1
    TrainerEngine(emit=lambda message: None).run_job(config)
    assert entries(tmp_path / "cache") == kept
    assert (shape.num_truncated_rows > 0) is (overlong == "truncate")
    assert (shape.num_dropped_rows > 0) is (overlong == "drop")


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
