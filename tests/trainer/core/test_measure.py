"""A dataset measured for a plan."""

from pathlib import Path

from trainer.core.batching import BatchPlan
from trainer.core.data import TokenizedDataset
from trainer.core.loss import collate
from trainer.core.measure import measure_dataset, shape_of
from trainer.plan import read_dataset_shape


def test_what_is_measured_is_what_the_batches_hold(dataset: TokenizedDataset) -> None:
    import torch

    shape = shape_of(dataset, tokens_per_batch=200)
    plan = BatchPlan(lengths=dataset.lengths, tokens_per_batch=200, num_epochs=1, seed=0)
    batches = [
        collate(dataset, indices=plan.batch(step), device=torch.device("cpu"))
        for step in range(plan.num_steps)
    ]
    assert shape.num_steps == len(batches)
    assert shape.num_answers == sum(batch.num_answers for batch in batches)
    assert shape.num_tokens == sum(batch.num_tokens for batch in batches)
    widths = [batch.input_ids.shape[0] * (batch.input_ids.shape[1] + 1) for batch in batches]
    assert shape.largest_batch_tokens == max(widths)
    shares = [batch.num_answers / width for batch, width in zip(batches, widths, strict=True)]
    assert shape.answer_share == max(shares)
    assert shape.longest_row_tokens == dataset.lengths.max()


def test_measuring_leaves_the_tokens_for_the_run(
    rows_file: Path, model_directory: Path, tmp_path: Path
) -> None:
    options = {
        "model": model_directory,
        "max_length": 128,
        "tokens_per_batch": 200,
        "token_cache_dir": tmp_path / "cache",
        "max_bytes": 1 << 30,
    }
    assert read_dataset_shape(rows_file, **options) == measure_dataset(rows_file, **options)
    assert len([path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]) == 1
