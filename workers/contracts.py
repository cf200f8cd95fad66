"""The public tasks: name, request, queue. One table for the sender, the receiver and the router."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from registry.calibrations import Calibration, CalibrationRequest
from registry.messages import (
    AccuracyRequest,
    CheckpointImport,
    DeploymentRequest,
    Drain,
    EvaluationAnswer,
    EvaluationDeferral,
    EvaluationNeed,
    EvaluationRequest,
    JobBell,
    JobCommand,
    Move,
    Nothing,
    PriorityChange,
    RankingRequest,
    RegressionRequest,
    RollbackRequest,
    SuiteBuild,
    TrainingSubmission,
    Undrain,
)
from registry.records import Record, Verdict
from registry.reports import AccuracyReport
from registry.states import Priority
from workers.errors import RequestError

CONTROL = "control"
EVALUATION = "evaluation"
INTELLIGENCE = "intelligence"
HOLD, RELEASE = "hold", "release"  # told to intelligence workers by remote control
TRAINING_QUEUES = tuple(str(priority) for priority in Priority)
JSON_TYPES = {"float", "int", "str", "bool", "list", "dict"}
QUEUES = (*TRAINING_QUEUES, EVALUATION, INTELLIGENCE, CONTROL)


@dataclass(frozen=True)
class Contract:
    """What a task takes, where it runs, and whether a caller may wait for its result."""

    request: type[Record]
    queue: str
    has_result: bool = False
    # The bell of an hours-long job is acknowledged on receipt: the registry, not a redelivery,
    # brings it back. Short tasks are acknowledged when done.
    acks_late: bool = True


TASKS: dict[str, Contract] = {
    "training.submit": Contract(TrainingSubmission, CONTROL, has_result=True),
    "training.run": Contract(JobBell, Priority.NORMAL, acks_late=False),
    "training.pause": Contract(JobCommand, CONTROL, has_result=True),
    "training.resume": Contract(JobCommand, CONTROL, has_result=True),
    "training.skip": Contract(JobCommand, CONTROL, has_result=True),
    "training.stop": Contract(JobCommand, CONTROL, has_result=True),
    "training.cancel": Contract(JobCommand, CONTROL, has_result=True),
    "training.retry": Contract(JobCommand, CONTROL, has_result=True),
    "training.set_priority": Contract(PriorityChange, CONTROL, has_result=True),
    "training.move": Contract(Move, CONTROL, has_result=True),
    "host.drain": Contract(Drain, CONTROL, has_result=True),
    "host.undrain": Contract(Undrain, CONTROL, has_result=True),
    "inbox.scan": Contract(Nothing, CONTROL),
    "checkpoint.import": Contract(CheckpointImport, CONTROL, has_result=True),
    "suite.build": Contract(SuiteBuild, CONTROL, has_result=True),
    "evaluation.send": Contract(EvaluationRequest, CONTROL),
    "evaluation.fetch": Contract(EvaluationNeed, CONTROL),
    "evaluation.run": Contract(EvaluationRequest, EVALUATION),
    "evaluation.record": Contract(EvaluationAnswer, CONTROL),
    "evaluation.defer": Contract(EvaluationDeferral, CONTROL),
    "regression.check": Contract(RegressionRequest, EVALUATION),
    "regression.record": Contract(Verdict, CONTROL),
    "testing.run": Contract(AccuracyRequest, INTELLIGENCE),
    "testing.record": Contract(AccuracyReport, CONTROL),
    "judgement.sweep": Contract(Nothing, CONTROL),
    "calibration.run": Contract(CalibrationRequest, INTELLIGENCE),
    "calibration.record": Contract(Calibration, CONTROL),
    "ranking.update": Contract(RankingRequest, CONTROL, has_result=True),
    "deployment.sync_best": Contract(DeploymentRequest, CONTROL, has_result=True),
    "deployment.rollback": Contract(RollbackRequest, CONTROL, has_result=True),
    "deployment.watch": Contract(Nothing, CONTROL),
    "safety.sweep": Contract(Nothing, CONTROL),
}


def contract_of(name: str) -> Contract:
    """The task's contract; `RequestError` with the nearest name where there is none."""
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(name, TASKS, n=1)
    remedy = f"Did you mean {close[0]}?" if close else "Tasks are: " + ", ".join(TASKS) + "."
    raise RequestError(f"There is no task {name!r}.", remedy=remedy)


def parse_request(name: str, *, fields: Mapping[str, Any], values: Sequence[Any] = ()) -> Record:
    """The request that these keyword arguments make; `RequestError` names field, value and remedy.

    `values` are arguments without a name: there may be none.
    """
    model = contract_of(name).request
    if values:
        raise RequestError(
            f"{name}: {str(values[0])[:80]!r} has no name.", remedy=f"By name it takes: {_describe(model)}."
        )
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise RequestError(
            f"{name}: {_first_problem(error)}", remedy=f"It takes: {_describe(model)}."
        ) from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    # The name of the type that was tried last says nothing to who wrote the value.
    field = ".".join(str(part) for part in problem["loc"] if part not in JSON_TYPES) or "arguments"
    if problem["type"] == "missing":
        return f"{field} is missing."
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a field of it."
    if problem["type"] == "value_error" and not problem["loc"]:  # of fields that do not go together
        return f"{problem['ctx']['error']}."
    return f"{field}={str(problem.get('input'))[:80]!r}: {problem['msg']}."


def _describe(model: type[Record]) -> str:
    if not model.model_fields:
        return "no arguments"
    return ", ".join(
        name if field.is_required() else f"[{name}]" for name, field in model.model_fields.items()
    )
