"""What a plan needs to know of a dataset, measured once: no tokens, and nothing that loads torch."""

from __future__ import annotations

from pydantic import Field

from registry.records import Record


class DatasetShape(Record):
    """What of a dataset decides memory. `answer_share` is the largest that any of its batches has."""

    num_rows: int = Field(ge=1)
    num_dropped_rows: int = Field(ge=0)
    num_tokens: int = Field(ge=1)
    num_answers: int = Field(ge=1)
    num_steps: int = Field(ge=1, description="of one epoch")
    longest_row: int = Field(ge=1, description="its number in the file")
    longest_row_tokens: int = Field(ge=1)
    largest_batch_tokens: int = Field(ge=1, description="padding included")
    answer_share: float = Field(gt=0, le=1)
