"""Records of automated testing: accuracy against the anchored baseline, and what people are told of it."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from registry.records import Estimate, Record
from registry.states import AlertLevel, AlertSource


class AccuracyChange(Record):
    """Accuracy of the whole suite or of one difficulty, beside the baseline's on the same rows.

    `accuracy` and `baseline` with Wilson's interval, `change` with Newcombe's for pairs. `p_value` is
    McNemar's, exact and two-sided; of difficulties adjusted by Holm for their number. The baseline's fields
    are None where there is nothing to compare with. `level` is None where nothing is to be told.
    """

    name: str
    accuracy: Estimate
    baseline: Estimate | None = None
    change: Estimate | None = None
    p_value: float | None = Field(default=None, ge=0, le=1)
    num_gained: int = Field(default=0, ge=0)
    num_lost: int = Field(default=0, ge=0)
    level: AlertLevel | None = None


class AccuracyReport(Record):
    """One evaluation's accuracy: by difficulty, what was gained and lost, and whether that is alarming.

    `total` is None where nothing can be said, with the reason in `reasons`. Without a baseline nothing is
    gained or lost: that is the first anchor's report.
    """

    id: str
    checkpoint_id: str
    suite_id: str
    evaluation_id: str
    baseline_checkpoint_id: str | None
    baseline_evaluation_id: str | None
    total: AccuracyChange | None
    levels: tuple[AccuracyChange, ...] = Field(default=(), description="by difficulty, by name")
    gained_row_ids: tuple[str, ...] = ()
    lost_row_ids: tuple[str, ...] = ()
    level: AlertLevel | None = None
    reasons: tuple[str, ...] = ()
    made_at: AwareDatetime


class Alert(Record):
    """Something that a person should know of a checkpoint. Raised once: its id says what it is about."""

    id: str
    source: AlertSource
    level: AlertLevel
    checkpoint_id: str
    suite_id: str
    message: str
    raised_at: AwareDatetime
