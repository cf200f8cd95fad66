"""What a plan needs to know of a dataset, measured once: no tokens, and nothing that loads torch."""

from __future__ import annotations

from pydantic import Field

from registry.records import Record
from trainer.config.job import Overlong


class RowSettings(Record):
    """What decides which tokens a row becomes."""

    profile: str
    max_length: int = Field(ge=2)
    overlong: Overlong


class BatchSettings(Record):
    """What decides which rows meet in a batch, and how many of them a process computes."""

    tokens_per_batch: int = Field(ge=1)
    num_processes: int = Field(default=1, ge=1)
    may_be_packed: bool = Field(default=False, description="where the model suits it")


class DatasetShape(Record):
    """What of a dataset decides memory. `answer_share` is the largest that any of its batches has."""

    num_rows: int = Field(ge=1)
    num_dropped_rows: int = Field(ge=0)
    num_truncated_rows: int = Field(default=0, ge=0)
    num_tokens: int = Field(ge=1)
    num_answers: int = Field(ge=1)
    num_steps: int = Field(ge=1, description="of one epoch")
    longest_row: int = Field(ge=1, description="its number in the file")
    longest_row_tokens: int = Field(ge=1)
    largest_batch_tokens: int = Field(ge=1, description="of one process, padding included")
    answer_share: float = Field(gt=0, le=1)
