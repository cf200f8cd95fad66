"""What travels as a Celery message: the keyword arguments of every task, checked on arrival."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, model_validator

from registry.records import ExampleResult, GenerationSettings, Host, Record, TrainingJob
from registry.states import Priority

ASKED = "asked for"  # why, where nobody gave a reason


class Nothing(Record):
    """For tasks that take no arguments."""


class TrainingSubmission(Record):
    """`training.submit`: train on this file."""

    dataset: str = Field(min_length=1, description="JSONL file, absolute or relative to the inbox")
    priority: Priority = Priority.NORMAL
    name: str | None = Field(default=None, min_length=1, max_length=80)
    parent: str = Field(default="tip", description="'tip', 'served', 'base' or a checkpoint id")
    hyperparameters: dict[str, JsonValue] = Field(default_factory=dict)
    profile: str | None = Field(default=None, min_length=1, max_length=80, description="the host's if unset")
    overlong: Literal["drop", "truncate", "reject"] | None = Field(
        default=None, description="what becomes of rows over max_length; the host's setting if unset"
    )
    force: bool = Field(default=False, description="train again although the same job exists")
    not_before_at: AwareDatetime | None = Field(default=None, description="it waits until then at least")
    after: tuple[str, ...] = Field(default=(), max_length=20, description="jobs that must end well before it")
    submitted_by: str = "celery call"


class SubmittedJob(Record):
    """What `training.submit` gives back. `is_new` is False where the same job existed already."""

    job: TrainingJob
    is_new: bool


class JobCommand(Record):
    """`training.pause`, `.resume`, `.skip`, `.stop`, `.cancel` and `.retry`."""

    job_id: str
    reason: str = Field(default=ASKED, max_length=200)


class CommandedJob(Record):
    """The job, and whether the command took effect or was passed on to its trainer."""

    job: TrainingJob
    is_in_effect: bool


class PriorityChange(Record):
    """`training.set_priority`: put a job into another queue."""

    job_id: str
    priority: Priority
    reason: str = Field(default=ASKED, max_length=200)


class Move(Record):
    """`training.move`: change a job's place in its queue. To the front, unless another place is named."""

    job_id: str
    before_id: str | None = Field(default=None, description="the job that is to run right after it")
    to_end: bool = False
    reason: str = Field(default=ASKED, max_length=200)

    @model_validator(mode="after")
    def _refuse_two_places(self) -> Self:
        if self.before_id is not None and self.to_end:
            raise ValueError("before_id and to_end cannot both be meant: give one of them")
        if self.before_id == self.job_id:
            raise ValueError("before_id names the job itself: name another, or none for the front")
        return self


class Drain(Record):
    """`host.drain`: finish what runs there, take nothing new; at once, or as soon as a job is done."""

    host: str = Field(min_length=1, max_length=128)
    after_job_id: str | None = None
    reason: str = Field(default=ASKED, max_length=200)


class Undrain(Record):
    """`host.undrain`: take work again."""

    host: str = Field(min_length=1, max_length=128)
    reason: str = Field(default=ASKED, max_length=200)


class DrainedHost(Record):
    """The host, and whether it is as it was asked to be.

    Draining is in effect once it takes nothing new and is known to work on nothing; until then `missing` says
    in words what it waits for.
    """

    host: Host
    working_on: tuple[str, ...]
    is_in_effect: bool
    missing: str = ""


class JobBell(Record):
    """`training.run`: this job waits. The worker takes the first of its queues, whichever it is."""

    job_id: str


class ArtifactReference(Record):
    """A file or directory named by path and content, so that the reader can prove what it read.

    Without a path it is named by content alone, and lies in the reader's own cache.
    """

    path: str
    sha256: str


class EvaluationRequest(Record):
    """`evaluation.run`: all that an intelligence host needs, so that it reads no registry."""

    evaluation_id: str
    checkpoint_id: str
    model: ArtifactReference = Field(description="directory; sha256 is that of its weights")
    suite_id: str
    suite: ArtifactReference
    settings: GenerationSettings
    device: str = "auto"
    num_threads: int = Field(default=1, ge=1)


class EvaluationAnswer(Record):
    """`evaluation.record`: every example's result, or the problem that prevented it."""

    evaluation_id: str
    checkpoint_id: str
    suite_id: str
    examples: tuple[ExampleResult, ...] = ()
    num_kept: int = Field(default=0, ge=0, description="of them, from an earlier pass of the same question")
    problem: str = ""
    host: str
    started_at: AwareDatetime
    finished_at: AwareDatetime


class EvaluationDeferral(Record):
    """`evaluation.defer`: it cannot begin now; to be asked again soon, and not counted as asked."""

    evaluation_id: str
    reason: str
    host: str


class EvaluationNeed(Record):
    """`evaluation.fetch`: this host took an evaluation, lacks what it is of, and waits for that."""

    evaluation_id: str
    host: str


class Evidence(Record):
    """One side of a comparison."""

    checkpoint_id: str
    evaluation_id: str
    suite_id: str
    examples: tuple[ExampleResult, ...]


class RegressionLimits(Record):
    """How much worse than the anchored baseline is too much (design, section 6)."""

    max_loss_increase: float = Field(default=0.15, gt=0, description="relative, +15 %")
    max_accuracy_drop: float = Field(default=0.10, gt=0, le=1, description="share of the suite, 10 points")
    max_perplexity_ratio: float = Field(default=1.5, gt=1)
    min_baseline_loss: float = Field(
        default=0.05, gt=0, description="nats; a smaller baseline loss counts as this"
    )
    min_pairs: int = Field(default=30, ge=2, description="fewer paired examples say nothing")
    max_slice_loss_increase: float = Field(default=0.15, gt=0, description="of one difficulty or tag")
    max_slice_accuracy_drop: float = Field(default=0.10, gt=0, le=1, description="of one difficulty or tag")
    min_slice_pairs: int = Field(default=20, ge=2, description="a smaller slice is not judged")
    num_resamples: int = Field(default=2000, ge=200)


class RegressionRequest(Record):
    """`regression.check`: candidate against baseline, example by example.

    `first_anchor` is the first baseline ever on this suite; None where it is `baseline` itself.
    """

    verdict_id: str
    candidate: Evidence
    baseline: Evidence | None
    first_anchor: Evidence | None = None
    limits: RegressionLimits


class AccuracyLimits(Record):
    """When automated testing alarms: a drop this large against the anchored baseline, told from chance."""

    warning_drop: float = Field(default=0.05, gt=0, le=1, description="share of the rows, 5 points")
    critical_drop: float = Field(default=0.15, gt=0, le=1, description="share of the rows, 15 points")
    max_p_value: float = Field(default=0.05, gt=0, lt=1, description="McNemar's; a larger one may be chance")


class AccuracyRequest(Record):
    """`testing.run`: an evaluation's accuracy, paired with the anchored baseline's; None for the first.

    A checkpoint that is older than its baseline may not alarm: to be behind is no loss then.
    """

    report_id: str
    candidate: Evidence
    baseline: Evidence | None
    limits: AccuracyLimits
    may_alarm: bool = True


class RankingRequest(Record):
    """`ranking.update`: rank the accepted checkpoints of the active suite."""


class DeploymentRequest(Record):
    """`deployment.sync_best`: serve the best-ranked checkpoint, or the named one."""

    checkpoint_id: str | None = None


class RollbackRequest(Record):
    """`deployment.rollback`: serve the release before, or the named one."""

    release_id: str | None = None
    reason: str = Field(default=ASKED, max_length=200)


class CheckpointImport(Record):
    """`checkpoint.import`: register a model directory as a candidate, or as the base model."""

    path: str = Field(min_length=1)
    origin: Literal["imported", "base"] = "imported"
    note: str = Field(default="", max_length=200)
    parent_checkpoint_id: str | None = None


class SuiteBuild(Record):
    """`suite.build`: make this JSONL file the active validation suite."""

    path: str = Field(min_length=1)
    name: str = Field(default="validation", min_length=1, max_length=80)
    scorer: str = Field(default="", max_length=80, description="judges the rows that name no scorer")
