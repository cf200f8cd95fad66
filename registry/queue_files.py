"""Contracts of the files in `queue/`: one a job, and the reason beside one that failed. For people only."""

from __future__ import annotations

from pydantic import AwareDatetime, JsonValue

from registry.records import JobProgress, Record
from registry.states import JobState, Priority


class JobFile(Record):
    """A job as `queue/` shows it. `dataset` is the immutable copy that it trains on."""

    id: str
    name: str
    state: JobState
    priority: Priority
    dataset: str | None
    num_rows: int | None
    hyperparameters: dict[str, JsonValue]
    submitted_by: str
    submitted_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    attempts: int
    progress: JobProgress | None
    final_checkpoint_id: str | None
    note: str


class ReasonFile(Record):
    """Why the file beside it is in `queue/failed`."""

    file: str
    reason: str
    kind: str
    attempts: int
    remedy: str
