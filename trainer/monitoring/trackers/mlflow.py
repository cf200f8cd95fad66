"""MLflow: a run of the experiment `tandem`, in `mlflow.db` unless MLFLOW_TRACKING_URI names a server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.monitoring.tools import ReportedRun

EXPERIMENT = "tandem"
TAG = "tandem_run"


class MlflowTracker:
    """By the client alone, so that no global state of MLflow is touched."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""

    def start(self, run: ReportedRun) -> None:
        """A run that goes on is the same run there."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        run.directory.mkdir(parents=True, exist_ok=True)
        local = f"sqlite:///{run.directory / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or local)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = (
            self._client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
        )
        found = self._client.search_runs([experiment_id], filter_string=f"tags.{TAG} = '{run.name}'")
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        created = self._client.create_run(experiment_id, run_name=run.name, tags={TAG: run.name})
        self._run_id = created.info.run_id
        params = [Param(name, str(value)) for name, value in run.settings.items()]
        self._client.log_batch(self._run_id, params=params)

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """All of a step in one batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, *, is_good: bool) -> None:
        """FINISHED or FAILED."""
        self._client.set_terminated(self._run_id, status="FINISHED" if is_good else "FAILED")
