"""Runs lm-evaluation-harness's tasks, given their files, on a checkpoint. Needs the extra `lm-eval`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from inference.errors import ModelError
from inference.lm_eval_model import TandemLM
from registry.records import Record


class HarnessResult(Record):
    """One metric of one task, as the harness reports it; `standard_error` is None where it has none."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_samples: int


def run_tasks(
    model: TandemLM, *, tasks: Sequence[str], include_dir: Path, limit: int | None = None
) -> list[HarnessResult]:
    """Every metric of the tasks whose YAML lies in `include_dir`, from local data alone.

    `ModelError` names the tasks there are where one is unknown, and a metric that is not finite.
    """
    manager = TaskManager(include_path=str(include_dir), include_defaults=False)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise ModelError(
            f"{include_dir} has no task {unknown[0]!r}.",
            remedy=f"There are: {', '.join(sorted(manager.all_tasks)) or 'none'}.",
        )
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=1000,
        log_samples=False,
    )
    return [
        result
        for task, numbers in found["results"].items()
        for result in _results(task, numbers=numbers, num_samples=found["n-samples"][task]["effective"])
    ]


def _results(task: str, *, numbers: dict[str, Any], num_samples: int) -> list[HarnessResult]:
    metrics = {name: value for name, value in numbers.items() if "," in name and "_stderr," not in name}
    return [
        HarnessResult(
            task=task,
            metric=name.split(",")[0],
            value=_finite(value, name=f"{task}: {name}"),
            standard_error=_error(numbers.get(name.replace(",", "_stderr,", 1))),
            num_samples=num_samples,
        )
        for name, value in metrics.items()
    ]


def _finite(value: Any, *, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"{name} is {value}: nobody knows how the model did.")
    return float(value)


def _error(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
