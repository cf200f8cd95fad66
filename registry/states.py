"""States of the records, each with its sentence, and the one table of legal steps."""

from __future__ import annotations

from enum import StrEnum

from registry.errors import IllegalTransition


class Priority(StrEnum):
    """Queues of the training host, first to last."""

    HIGH = "high"  #: runs before everything else
    NORMAL = "normal"  #: runs when no high job waits
    LOW = "low"  #: runs when nothing else waits

    @property
    def rank(self) -> int:
        """0 for high, 1 for normal, 2 for low: what the queue is sorted by."""
        return list(Priority).index(self)


class JobState(StrEnum):
    """Life of a training job."""

    SUBMITTED = "submitted"  #: the row exists; its dataset is stored; no bell was rung yet
    QUEUED = "queued"  #: waits for a training worker
    RUNNING = "running"  #: a worker holds its lease
    PAUSED = "paused"  #: holds its progress and waits for `resume`
    SUCCEEDED = "succeeded"  #: every planned step was taken and the last checkpoint is verified
    STOPPED = "stopped"  #: a person ended it early; what was trained is saved, `note` says what was not used
    FAILED = "failed"  #: three attempts, or an error that a retry cannot mend
    REJECTED = "rejected"  #: the data or the configuration cannot be trained on
    CANCELLED = "cancelled"  #: a person said so, or a job that it was to follow did not succeed


class CheckpointState(StrEnum):
    """Life of a checkpoint."""

    WRITING = "writing"  #: files are being written; it does not exist for anyone else
    COMPLETE = "complete"  #: its manifest is valid
    CANDIDATE = "candidate"  #: its evaluation was asked for
    ACCEPTED = "accepted"  #: its verdict is `pass`: it may be ranked and served
    QUARANTINED = "quarantined"  #: its verdict is `regressed`, or its files are damaged
    RETIRED = "retired"  #: its weights were removed; the row and its numbers stay


class EvaluationState(StrEnum):
    """Life of a question put to an intelligence host."""

    REQUESTED = "requested"  #: asked, not answered
    ANSWERED = "answered"  #: every example of the suite has a result
    FAILED = "failed"  #: no answer can be had; the checkpoint's verdict is `unknown`


class Outcome(StrEnum):
    """What a verdict says. Only `pass` lets a checkpoint be ranked and served."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password  #: no limit is broken
    WATCH = "watch"  #: a limit is broken by the estimate, not by its whole interval
    REGRESSED = "regressed"  #: a limit is broken by the whole interval
    UNKNOWN = "unknown"  #: not a number, too few examples, or suites that differ


class AlertLevel(StrEnum):
    """How much an alert matters."""

    WARNING = "warning"  #: somebody should look when there is time
    CRITICAL = "critical"  #: a checkpoint is surely worse than what it is to replace


class AlertSource(StrEnum):
    """Which judgement raised an alert."""

    REGRESSION = "regression"  #: the regression monitor's verdict
    TESTING = "testing"  #: automated testing's accuracy report
    SERVING = "serving"  #: what became of a release's first requests, and of its server


class DeploymentState(StrEnum):
    """Life of a release on its way to being served."""

    PLANNED = "planned"  #: the row exists
    SYNCING = "syncing"  #: files are on their way
    VERIFIED = "verified"  #: every sha256 matches on the far side
    ACTIVE = "active"  #: the server answers with it
    SUPERSEDED = "superseded"  #: a newer release took its place
    ROLLED_BACK = "rolled_back"  #: withdrawn by a person or for its first minutes
    FAILED = "failed"  #: never became active; the release before it still serves


class Command(StrEnum):
    """What a person may ask of a training job."""

    PAUSE = "pause"  #: save at the next step and wait for `resume`
    RESUME = "resume"  #: back to the queue, from where it stood
    SKIP = "skip"  #: to the end of its queue; it keeps its progress
    STOP = "stop"  #: save at the next step and be done with it
    CANCEL = "cancel"  #: save nothing more and never run again
    RETRY = "retry"  #: back to the queue with fresh attempts, from where it stood


ENDED_JOB_STATES = (
    JobState.SUCCEEDED,
    JobState.STOPPED,
    JobState.FAILED,
    JobState.REJECTED,
    JobState.CANCELLED,
)

State = JobState | CheckpointState | EvaluationState | DeploymentState

# By kind of record: states of two kinds that bear one name (failed) are equal as keys.
TRANSITIONS: dict[type[State], dict[State, frozenset[State]]] = {
    JobState: {
        JobState.SUBMITTED: frozenset({JobState.QUEUED, JobState.REJECTED, JobState.CANCELLED}),
        JobState.QUEUED: frozenset(
            {JobState.RUNNING, JobState.PAUSED, JobState.STOPPED, JobState.FAILED, JobState.CANCELLED}
        ),
        JobState.RUNNING: frozenset(
            {
                JobState.QUEUED,
                JobState.PAUSED,
                JobState.SUCCEEDED,
                JobState.STOPPED,
                JobState.FAILED,
                JobState.REJECTED,
                JobState.CANCELLED,
            }
        ),
        JobState.PAUSED: frozenset({JobState.QUEUED, JobState.STOPPED, JobState.CANCELLED}),
        JobState.SUCCEEDED: frozenset(),
        # A person may try again what ended otherwise.
        JobState.STOPPED: frozenset({JobState.QUEUED}),
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.REJECTED: frozenset({JobState.QUEUED}),
        JobState.CANCELLED: frozenset({JobState.QUEUED}),
    },
    CheckpointState: {
        CheckpointState.WRITING: frozenset({CheckpointState.COMPLETE, CheckpointState.QUARANTINED}),
        CheckpointState.COMPLETE: frozenset({CheckpointState.CANDIDATE, CheckpointState.QUARANTINED}),
        CheckpointState.CANDIDATE: frozenset(
            {CheckpointState.ACCEPTED, CheckpointState.QUARANTINED, CheckpointState.RETIRED}
        ),
        CheckpointState.ACCEPTED: frozenset({CheckpointState.QUARANTINED, CheckpointState.RETIRED}),
        CheckpointState.QUARANTINED: frozenset({CheckpointState.RETIRED}),
        CheckpointState.RETIRED: frozenset(),
    },
    EvaluationState: {
        EvaluationState.REQUESTED: frozenset({EvaluationState.ANSWERED, EvaluationState.FAILED}),
        EvaluationState.ANSWERED: frozenset(),
        EvaluationState.FAILED: frozenset({EvaluationState.REQUESTED, EvaluationState.ANSWERED}),
    },
    DeploymentState: {
        DeploymentState.PLANNED: frozenset({DeploymentState.SYNCING, DeploymentState.FAILED}),
        DeploymentState.SYNCING: frozenset({DeploymentState.VERIFIED, DeploymentState.FAILED}),
        DeploymentState.VERIFIED: frozenset({DeploymentState.ACTIVE, DeploymentState.FAILED}),
        DeploymentState.ACTIVE: frozenset({DeploymentState.SUPERSEDED, DeploymentState.ROLLED_BACK}),
        DeploymentState.SUPERSEDED: frozenset({DeploymentState.ACTIVE}),
        DeploymentState.ROLLED_BACK: frozenset({DeploymentState.ACTIVE}),
        DeploymentState.FAILED: frozenset(),
    },
}


def check_transition(before: State, *, after: State) -> None:
    """Raise `IllegalTransition` unless the table has the step from `before` to `after`."""
    legal_steps = TRANSITIONS[type(before)][before]
    if type(before) is type(after) and after in legal_steps:
        return
    legal = ", ".join(sorted(legal_steps)) or "nothing: it is final"
    raise IllegalTransition(
        f"{type(before).__name__} cannot go from {before} to {after}.",
        remedy=f"From {before} it can go to {legal}.",
    )


def is_final(state: State) -> bool:
    """True where nothing leads on by itself; a person may still `retry` a job."""
    return state in ENDED_JOB_STATES if isinstance(state, JobState) else not TRANSITIONS[type(state)][state]
