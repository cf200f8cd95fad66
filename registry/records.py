"""The records: one frozen model for whatever one room writes and another reads.

Floats are finite by construction (`allow_inf_nan=False`); a number that could not be had is `None`
with its reason beside it. Times are aware UTC and end in `_at`; counts begin with `num_`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field, JsonValue

from registry.progress import JobProgress as JobProgress
from registry.states import (
    CheckpointState,
    Command,
    DeploymentState,
    EvaluationState,
    JobState,
    Outcome,
    Priority,
)
from registry.values import Estimate as Estimate
from registry.values import Record as Record
from registry.verdicts import Drift, Power, SliceVerdict


class Dataset(Record):
    """An immutable JSONL file in the dataset store, named by its content."""

    id: str
    name: str
    content_sha256: str
    path: str
    num_rows: int = Field(ge=1)
    num_bytes: int = Field(ge=1)
    created_at: AwareDatetime


class JobProblem(Record):
    """Why an attempt ended badly: class of error, sentence, remedy."""

    kind: str
    message: str
    attempt: int
    at: AwareDatetime


class TrainingJob(Record):
    """A dataset to train on, with how and with what result.

    `hyperparameters` and `max_length` are complete and fixed at submission: a default that changes later
    changes no job that waits. `place` orders a queue; `after` names jobs that must end well before it.
    """

    id: str
    name: str
    state: JobState
    priority: Priority
    dataset_id: str
    hyperparameters: dict[str, JsonValue] = Field(default_factory=dict)
    max_length: int | None = Field(default=None, ge=2, description="tokens of a row")
    parent: str = "tip"
    parent_checkpoint_id: str | None = None
    dedupe_key: str
    submitted_by: str
    place: int = 0
    not_before_at: AwareDatetime | None = None
    after: tuple[str, ...] = ()
    attempts: int = Field(default=0, ge=0)
    max_attempts: int = Field(default=3, ge=1, description="a retry grants three more")
    progress: JobProgress | None = None
    problems: tuple[JobProblem, ...] = ()
    command: Command | None = None
    note: str = Field(default="", description="what a person should know of how it ended")
    final_checkpoint_id: str | None = None
    submitted_at: AwareDatetime
    queued_at: AwareDatetime | None = None
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None


class Checkpoint(Record):
    """A verified model directory and where it came from."""

    id: str
    state: CheckpointState
    origin: str = Field(pattern="^(base|trained|imported)$")
    job_id: str | None = None
    parent_checkpoint_id: str | None = None
    dataset_id: str | None = None
    step: int = Field(default=0, ge=0)
    is_final: bool = False
    path: str
    weights_sha256: str
    train_loss: float | None = None
    note: str = ""
    created_at: AwareDatetime


class Suite(Record):
    """A fixed, versioned validation suite: a file named by its content."""

    id: str
    name: str
    content_sha256: str
    path: str
    num_rows: int = Field(ge=1)
    num_by_difficulty: dict[str, int]
    is_active: bool
    created_at: AwareDatetime


class GenerationSettings(Record):
    """How an answer is generated. Greedy unless temperature is above 0."""

    max_new_tokens: int = Field(default=32, ge=1, le=32768)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    stop: tuple[str, ...] = ()


# At these the probability of an answer is kept, so that calibration finds the right temperature without a
# model: half octaves, from four times sharper to eight times flatter.
TEMPERATURES = tuple(2.0 ** (half / 2) for half in range(-4, 7))


class ExampleResult(Record):
    """What a checkpoint did with one row of the suite.

    `loss` is the mean negative log-likelihood (nats) of the expected answer's tokens, end of turn
    included; `None` with `problem` set where it is not finite. `confidence` is the probability the
    model gave the whole sequence that it generated, in [0, 1]. `tempered_logprobs` are the logarithms of
    that probability (nats) with the logits divided by each of `TEMPERATURES`; empty where not known.
    """

    row_id: str
    difficulty: str
    tags: tuple[str, ...] = ()
    cluster: str = Field(default="", description="rows of one cluster share something, such as a text")
    expected: str
    answer: str
    is_correct: bool
    scorer: str = "exact"
    loss: float | None
    num_answer_tokens: int = Field(ge=0)
    confidence: float | None = Field(default=None, ge=0, le=1)
    tempered_logprobs: tuple[float, ...] = ()
    finish_reason: str
    problem: str = ""


class EvaluationSummary(Record):
    """Means over an evaluation's examples, each with n and interval."""

    num_examples: int = Field(ge=1)
    num_unknown: int = Field(ge=0)
    loss: Estimate | None
    accuracy: Estimate
    accuracy_by_difficulty: dict[str, Estimate]
    mean_confidence: float | None

    @property
    def is_wholly_unknown(self) -> bool:
        """No row's answer is known: an accuracy of 0 would then say what nobody knows."""
        return self.num_unknown == self.num_examples

    @property
    def known_accuracy(self) -> Estimate | None:
        """None where no row's answer is known."""
        return None if self.is_wholly_unknown else self.accuracy

    @property
    def known_accuracy_by_difficulty(self) -> dict[str, Estimate]:
        """Empty where no row's answer is known."""
        return {} if self.is_wholly_unknown else self.accuracy_by_difficulty


class Evaluation(Record):
    """One question put to an intelligence host: this checkpoint, this suite, these settings."""

    id: str
    checkpoint_id: str
    suite_id: str
    state: EvaluationState
    settings: GenerationSettings
    summary: EvaluationSummary | None = None
    problem: str = ""
    host: str = ""
    requested_at: AwareDatetime
    answered_at: AwareDatetime | None = None
    duration_seconds: float | None = Field(default=None, ge=0)


class Verdict(Record):
    """Judgement of a checkpoint against the anchored baseline. One per (checkpoint, suite, baseline).

    `drift` is None where the baseline is itself the first anchor, `power` where nothing was compared.
    """

    id: str
    checkpoint_id: str
    suite_id: str
    evaluation_id: str
    baseline_checkpoint_id: str | None
    baseline_evaluation_id: str | None
    outcome: Outcome
    reasons: tuple[str, ...]
    num_pairs: int = Field(ge=0)
    loss_increase: Estimate | None = None
    accuracy_change: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    slices: tuple[SliceVerdict, ...] = ()
    num_small_slices: int = Field(default=0, ge=0, description="with too few pairs to be judged")
    drift: Drift | None = None
    power: Power | None = None
    decided_at: AwareDatetime


class Lead(Record):
    """By how much a checkpoint's score exceeds that of the next one, on the very same examples.

    `p_value` is that of the paired bootstrap, two-sided; the many pairs of a ranking are not corrected for.
    """

    difference: Estimate
    standard_error: float = Field(ge=0)
    p_value: float = Field(gt=0, le=1)


class RankingEntry(Record):
    """A checkpoint's place, with each term of its score visible and the evaluation that it stands on.

    `is_tied_with_best`: within one standard error of the highest score. `is_on_front`: no other is as good
    in loss and accuracy and better in one. `lead` is None for the last place.
    """

    rank: int = Field(ge=1)
    checkpoint_id: str
    evaluation_id: str
    score: Estimate
    loss: Estimate
    accuracy: Estimate
    terms: dict[str, float]
    is_tied_with_best: bool
    is_on_front: bool
    lead: Lead | None


class Ranking(Record):
    """Accepted checkpoints, best first; who was served when it was made counts where scores are tied."""

    id: str
    suite_id: str
    served_checkpoint_id: str | None = None
    evidence_sha256: str = Field(description="of all that it was made of; the same gives the same ranking")
    entries: tuple[RankingEntry, ...]
    weights: dict[str, float]
    num_eligible: int = Field(ge=0)
    note: str = ""
    made_at: AwareDatetime


class Contrast(Record):
    """One measure of two checkpoints on the same examples: both means, and right minus left."""

    left: float
    right: float
    difference: Estimate
    p_value: float | None = Field(default=None, gt=0, le=1, description="of no difference; None in slices")


class SliceContrast(Record):
    """The examples of one difficulty or tag."""

    kind: Literal["difficulty", "tag"]
    name: str
    loss: Contrast | None
    accuracy: Contrast | None
    num_examples: int = Field(ge=1)


class Flip(Record):
    """A row that one checkpoint answers right and the other wrong."""

    row_id: str
    difficulty: str
    expected: str
    left_answer: str
    right_answer: str


class Comparison(Record):
    """Two checkpoints, example by example, on one suite."""

    left_checkpoint_id: str
    right_checkpoint_id: str
    suite_id: str
    num_pairs: int = Field(ge=2)
    loss: Contrast
    accuracy: Contrast
    score: Contrast
    slices: tuple[SliceContrast, ...]
    gained: tuple[Flip, ...]
    lost: tuple[Flip, ...]


class Deployment(Record):
    """A checkpoint on its way to being served. The active one is what is served."""

    id: str
    generation: int = Field(ge=1)
    checkpoint_id: str
    state: DeploymentState
    release_path: str = ""
    weights_sha256: str
    reason: str
    problem: str = ""
    num_files: int = Field(default=0, ge=0)
    num_bytes: int = Field(default=0, ge=0)
    started_at: AwareDatetime
    activated_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    duration_seconds: float | None = Field(default=None, ge=0)


class Ask(Record):
    """When something was last asked of a worker, so that a lost message is asked again and no other."""

    id: str
    kind: str
    subject_id: str
    num_asked: int = Field(ge=0)
    asked_at: AwareDatetime
    is_settled: bool = False


class HandledMessage(Record):
    """A message that was obeyed; its id is a hash of the message's."""

    id: str
    handled_at: AwareDatetime


class Lease(Record):
    """Who may write about a resource. The token grows with each new holder and never repeats."""

    id: str
    holder: str
    token: int = Field(ge=1)
    acquired_at: AwareDatetime
    renewed_at: AwareDatetime
    expires_at: AwareDatetime

    def is_expired(self, *, now: datetime) -> bool:
        """True from `expires_at` on."""
        return now >= self.expires_at


class Host(Record):
    """A machine whose workers were seen. One that drains finishes what it has and takes nothing new.

    With `drain_after_job_id` it drains as soon as that job neither waits nor runs.
    """

    id: str
    roles: tuple[str, ...] = ()
    is_draining: bool = False
    drain_after_job_id: str | None = None
    reason: str = ""
    waits_for: str = Field(default="", description="why its training worker cannot begin; empty if it can")
    seen_at: AwareDatetime


class Event(Record):
    """One change of state: who, when, why."""

    id: int | None = None
    at: AwareDatetime
    actor: str
    kind: str
    subject_id: str
    before: str | None
    after: str
    reason: str = ""
    data: dict[str, JsonValue] = Field(default_factory=dict)
