"""What the trainer says while it works: one JSON object a line on its standard output.

Supervisors read these lines with `parse_line`; nothing else ever appears on that stream. The numbers are
finite by construction: a loss that is not a number ends the run as `diverged` instead of being sent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from registry.progress import MicroEvaluation, TrainingAlert
from registry.records import Record

FailureKind = Literal[
    "data",
    "config",
    "diverged",
    "out_of_memory",
    "model",
    "disk",
    "network",
    "orphaned",
    "peer_lost",
    "internal",
]
EndState = Literal["finished", "stopped", "paused"]


class TrainingResult(Record):
    """How a run ended.

    `step` is where it stands, of `num_steps` planned. `num_tokens` and `mean_loss` (nats an answer token)
    cover the whole job, resumed parts included; `tokens_per_second` and `duration_seconds` this run alone.
    """

    state: EndState
    num_steps: int = Field(ge=1)
    step: int = Field(ge=0)
    epoch: float = Field(ge=0)
    num_tokens: int = Field(ge=0)
    num_unused_rows: int = Field(ge=0, description="rows that no step has used")
    num_dropped_rows: int = Field(default=0, ge=0, description="rows over max_length, left out")
    num_truncated_rows: int = Field(default=0, ge=0, description="rows over max_length, cut off there")
    final_checkpoint: str | None
    mean_loss: float | None
    tokens_per_second: float | None = Field(default=None, ge=0)
    duration_seconds: float = Field(ge=0)


class Started(Record):
    """Model and data are loaded; the first step follows.

    `num_rows` are the rows used. `num_sequences` is larger where a chat template shows earlier turns
    differently once a conversation goes on, so that each turn is learnt from its own rendering.
    """

    type: Literal["started"] = "started"
    num_rows: int = Field(ge=1)
    num_sequences: int = Field(ge=1)
    num_dropped_rows: int = Field(default=0, ge=0)
    num_truncated_rows: int = Field(default=0, ge=0)
    num_steps: int = Field(ge=1)
    resumed_from_step: int | None = None
    device: str


class Progress(Record):
    """State after a step. `loss` is the mean since the last report, in nats an answer token.

    `smoothed_loss` is that of the last 50 steps; `average_tokens_per_second` that of this run so far.
    `alerts` are those that hold now. `micro_evaluation` is the last one; before it, `unmeasured_because`
    says why there is none.
    """

    type: Literal["progress"] = "progress"
    step: int = Field(ge=0)
    num_steps: int = Field(ge=1)
    epoch: float = Field(ge=0)
    loss: float
    learning_rate: float = Field(ge=0)
    grad_norm: float = Field(ge=0)
    smoothed_loss: float | None = None
    tokens_per_second: float | None = Field(default=None, ge=0)
    average_tokens_per_second: float | None = Field(default=None, ge=0)
    alerts: tuple[TrainingAlert, ...] = ()
    micro_evaluation: MicroEvaluation | None = None
    unmeasured_because: str = ""
    num_tokens: int = Field(ge=0)
    num_unused_rows: int = Field(ge=0, description="rows that no step has used yet")
    peak_memory_bytes: int = Field(ge=0)
    resident_bytes: int | None = Field(default=None, ge=0, description="main memory of the process now")


class CheckpointSaved(Record):
    """A verified checkpoint stands at `path`. `train_loss` is the mean of the steps just before it."""

    type: Literal["checkpoint_saved"] = "checkpoint_saved"
    path: str
    step: int = Field(ge=1)
    is_final: bool
    weights_sha256: str
    train_loss: float | None = None


class Warned(Record):
    """Something was wrong and was dealt with: the run goes on."""

    type: Literal["warned"] = "warned"
    message: str


class Finished(Record):
    """The last line of a run that ended well, on its own or because it was told to."""

    type: Literal["finished"] = "finished"
    result: TrainingResult


class Failed(Record):
    """The last line of a run that ended badly."""

    type: Literal["failed"] = "failed"
    kind: FailureKind
    message: str
    remedy: str = ""


ChildMessage = Annotated[
    Started | Progress | CheckpointSaved | Warned | Finished | Failed, Field(discriminator="type")
]
_adapter: TypeAdapter[ChildMessage] = TypeAdapter(ChildMessage)


def parse_line(line: str | bytes) -> ChildMessage:
    """One line as its message; `ValidationError`, which is a `ValueError`, where it is none."""
    return _adapter.validate_json(line)


def format_line(message: ChildMessage) -> bytes:
    """One message as one line, newline included."""
    return message.model_dump_json().encode() + b"\n"
