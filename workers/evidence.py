"""Every answered evaluation as a Parquet file, for pandas, DuckDB and whoever wants to look closer.

A projection like the status files: written from the registry, which got the examples in one transaction with
their means, and never read back.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from registry import judgements
from registry.files import write_atomically
from registry.records import Evaluation, ExampleResult
from registry.states import EvaluationState
from registry.store import Registry, Transaction

SUFFIX = ".parquet"


def refresh(registry: Registry, *, directory: Path) -> list[Path]:
    """Write the files that are missing; their paths. An evaluation is immutable, so a file never changes."""
    there = {path.stem for path in directory.glob(f"*{SUFFIX}")}
    with registry.reading() as tx:
        missing = [evaluation for evaluation in _answered(tx) if evaluation.id not in there]
    written = []
    for evaluation in missing:
        with registry.reading() as tx:
            examples = judgements.examples_of(tx, evaluation_id=evaluation.id)
        path = directory / f"{evaluation.id}{SUFFIX}"
        write_atomically(path, content=_parquet(evaluation, examples=examples), is_durable=False)
        written.append(path)
    return written


def _answered(tx: Transaction) -> list[Evaluation]:
    return tx.find(Evaluation, state=EvaluationState.ANSWERED)


def _parquet(evaluation: Evaluation, *, examples: tuple[ExampleResult, ...]) -> bytes:
    """A row an example, in the record's own fields; what was asked stands in the file's metadata."""
    import pyarrow  # a third of a second that only the worker that writes should pay
    from pyarrow import parquet

    rows = [example.model_dump(mode="json") for example in examples]
    table = pyarrow.Table.from_pylist(rows, schema=_schema())
    asked = {
        "evaluation_id": evaluation.id,
        "checkpoint_id": evaluation.checkpoint_id,
        "suite_id": evaluation.suite_id,
        "settings": evaluation.settings.model_dump_json(),
    }
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(asked), buffer, compression="zstd")
    return buffer.getvalue()


def _schema() -> Any:
    """Written down and not guessed from the rows, so that all files can be read as one table.

    A checkpoint whose losses are all unknown, or a suite without tags, would have columns of no type.
    """
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    types = {
        "tags": pyarrow.list_(text),
        "is_correct": pyarrow.bool_(),
        "loss": number,
        "num_answer_tokens": pyarrow.int64(),
        "confidence": number,
        "tempered_logprobs": pyarrow.list_(number),
    }
    return pyarrow.schema([(name, types.get(name, text)) for name in ExampleResult.model_fields])
