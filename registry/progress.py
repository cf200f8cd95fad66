"""What is known of a run while it trains: its last report, and what watching it gives.

A number that could not be had is None, with the reason beside it. `registry.records` gives `JobProgress` too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, Field, field_validator

from registry.values import Estimate, Record

AlertKind = Literal["throughput", "gap", "loss_variance", "not_finite"]
GapState = Literal["good", "watch", "overfitting"]


class TrainingAlert(Record):
    """Something that a person should look at: raised once, and gone as soon as it no longer holds.

    `value` is None where it is not a number. `since_step` is the step at which it was first seen.
    """

    kind: AlertKind
    message: str
    value: float | None
    limit: float | None
    since_step: int = Field(ge=0)
    raised_at: AwareDatetime


class MicroEvaluation(Record):
    """The model at one step on the same few held-out rows, and on as many rows that it has learnt.

    Losses in nats an answer token, `gap` is validation minus training, accuracies are shares of the answer
    tokens that the model would have said itself. Intervals are of the rows, which are what was drawn:
    `num_samples` counts them. All are None with `problem` where a loss is not finite.
    """

    step: int = Field(ge=0)
    validation_loss: Estimate | None = None
    training_loss: Estimate | None = None
    gap: Estimate | None = None
    gap_state: GapState | None = None
    validation_accuracy: Estimate | None = None
    training_accuracy: Estimate | None = None
    num_validation_tokens: int = Field(ge=1)
    num_training_tokens: int = Field(ge=1)
    duration_seconds: float = Field(ge=0)
    problem: str = ""


class TimeLeft(Record):
    """Until the last step, as measured. `variance` (seconds squared) is None where the spread is unknown."""

    seconds: float = Field(ge=0)
    variance: float | None = Field(default=None, ge=0)
    num_samples: int = Field(ge=1)


class EndPrediction(Record):
    """What was said at a share of a run of the time left to it, with its 95 % interval."""

    share: float = Field(gt=0, lt=1)
    step: int = Field(ge=1)
    seconds: float = Field(ge=0)
    low_seconds: float | None = None
    high_seconds: float | None = None
    made_at: AwareDatetime


class DeviceReading(Record):
    """The device that trains and the trainer's process at one moment. Bytes; utilisation is a share of time.

    On a CPU, memory is the host's. What is None is named in `unknown_because`.
    """

    name: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilisation: float | None = Field(default=None, ge=0, le=1)
    temperature_celsius: float | None = None
    trainer_memory_bytes: int | None = Field(default=None, description="main memory of its process")
    unknown_because: str = ""
    read_at: AwareDatetime


class JobProgress(Record):
    """Last report of a trainer, kept with the job so that a restart loses no history.

    `predictions` are those of the attempt at hand.
    """

    step: int = Field(ge=0)
    num_steps: int = Field(ge=1)
    epoch: float = Field(ge=0)
    loss: float | None = None
    smoothed_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    average_tokens_per_second: float | None = None
    alerts: tuple[TrainingAlert, ...] = ()
    micro_evaluation: MicroEvaluation | None = None
    unmeasured_because: str = ""
    num_tokens: int = Field(ge=0)
    num_unused_rows: int | None = Field(default=None, ge=0, description="no step has used them yet")
    left: TimeLeft | None = None
    predictions: tuple[EndPrediction, ...] = ()
    device: DeviceReading | None = None
    reported_at: AwareDatetime

    @field_validator("alerts", mode="before")
    @classmethod
    def _without_sentences(cls, value: Any) -> Any:
        """Alerts were sentences once; such a row is still read, without them."""
        return [alert for alert in value if not isinstance(alert, str)] if value else ()


class Preview(Record):
    """What an evaluated checkpoint said to one row of the validation suite, beside the right answer."""

    prompt: str
    golden_answer: str
    reply: str
    is_correct: bool
    checkpoint_id: str
    step: int
    job_id: str | None = Field(description="that trained the checkpoint")
    answered_at: AwareDatetime
    age_seconds: float = Field(ge=0)


class QueueVelocity(Record):
    """Jobs that succeeded in the last hours, and the rows that they learnt (counted once an epoch).

    The interval of `jobs_per_hour` is that of a Poisson count; `num_samples` there is the number of jobs,
    which may be 0.
    """

    hours: float = Field(gt=0)
    num_jobs: int = Field(ge=0)
    num_rows: float = Field(ge=0)
    jobs_per_hour: float = Field(ge=0)
    jobs_per_hour_low: float = Field(ge=0)
    jobs_per_hour_high: float = Field(ge=0)
    rows_per_hour: float = Field(ge=0)


class EtaError(Record):
    """How far off the ETAs of jobs that succeeded were, as said when this share of a run was done.

    Errors are relative to the time that was really left; a positive `median_bias` promised too late an end.
    `num_inside` of `num_with_interval` intervals held the real end.
    """

    share: float
    median_relative_error: float = Field(ge=0)
    median_bias: float
    num_jobs: int = Field(ge=1)
    num_with_interval: int = Field(ge=0)
    num_inside: int = Field(ge=0)


class TrainingError(Record):
    """The last thing that went wrong with a job. `kind` is its class, as the policy of retries knows it."""

    kind: str
    message: str
    job_id: str
    attempt: int
    at: AwareDatetime
