"""The Python API.

    from tasks.api import Tandem
    job = Tandem().submit("data.jsonl", priority="high")
    job.wait()

Every call sends the same task that `celery call`, the command line and the inbox use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from config.settings import Settings, load_settings
from registry.errors import TandemError
from registry.messages import (
    CheckpointImport,
    CommandedJob,
    DeploymentRequest,
    JobCommand,
    RollbackRequest,
    SubmittedJob,
    SuiteBuild,
    TrainingSubmission,
)
from registry.records import Checkpoint, Deployment, Record, Suite, TrainingJob
from registry.states import is_final
from registry.status_files import SystemStatus
from workers.app import broker_unavailable
from workers.context import Context, Message, open_context
from workers.contracts import parse_request
from workers.errors import NoAnswer, TaskFailed
from workers.status import system_status

R = TypeVar("R", bound=Record)

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class JobHandle:
    """A submitted job. `is_new` is False where the same job existed already."""

    id: str
    is_new: bool
    context: Context

    @property
    def row(self) -> TrainingJob:
        """The job as the registry has it at this moment."""
        with self.context.registry.reading() as tx:
            return tx.get(TrainingJob, self.id)

    def wait(
        self,
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> TrainingJob:
        """Wait until the job is finished and return its row; `NoAnswer` after the timeout."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not is_final((job := self.row).state):
            if deadline is not None and time.monotonic() > deadline:
                raise NoAnswer(f"{self.id} is still {job.state} after {timeout_seconds:g} s.")
            sleep(poll_seconds)
        return job

    def pause(self) -> bool:
        """Save at the next step, wait for `resume`. True where it is in effect, False where it was asked."""
        return self._command("pause")

    def resume(self) -> bool:
        """Back to the queue, from where it stood."""
        return self._command("resume")

    def skip(self) -> bool:
        """To the end of its queue; it keeps its progress."""
        return self._command("skip")

    def cancel(self) -> bool:
        """Never run again; its checkpoints stay."""
        return self._command("cancel")

    def _command(self, name: str) -> bool:
        request = JobCommand(job_id=self.id)
        return ask(self.context, f"training.{name}", request=request, answer=CommandedJob).is_in_effect


class Tandem:
    """A client of the running system. Reads settings as every part does, unless they are passed."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = load_settings() if settings is None else settings
        self.context = open_context(self.settings)

    def submit(
        self,
        dataset: str | Path,
        *,
        priority: str = "normal",
        name: str | None = None,
        parent: str = "tip",
        hyperparameters: Mapping[str, Any] | None = None,
        force: bool = False,
        submitted_by: str = "python",
    ) -> JobHandle:
        """Submit a JSONL file for training. The same file and configuration give the same job."""
        fields = {
            "dataset": _absolute(dataset),
            "priority": priority,
            "name": name,
            "parent": parent,
            "hyperparameters": dict(hyperparameters or {}),
            "force": force,
            "submitted_by": submitted_by,
        }
        request = TrainingSubmission.model_validate(
            parse_request("training.submit", fields=fields).model_dump()
        )
        submitted = ask(self.context, "training.submit", request=request, answer=SubmittedJob)
        return JobHandle(id=submitted.job.id, is_new=submitted.is_new, context=self.context)

    def job(self, job_id: str) -> JobHandle:
        """A handle on an existing job; `NotFound` where there is none."""
        with self.context.registry.reading() as tx:
            tx.get(TrainingJob, job_id)
        return JobHandle(id=job_id, is_new=False, context=self.context)

    def import_checkpoint(self, path: str | Path, *, as_base: bool = False, note: str = "") -> Checkpoint:
        """Register a model directory as a candidate, or as the base model."""
        origin = "base" if as_base else "imported"
        request = CheckpointImport(path=_absolute(path), origin=origin, note=note)
        return ask(self.context, "checkpoint.import", request=request, answer=Checkpoint)

    def build_suite(self, path: str | Path, *, name: str = "validation") -> Suite:
        """Make a JSONL file the active validation suite."""
        request = SuiteBuild(path=_absolute(path), name=name)
        return ask(self.context, "suite.build", request=request, answer=Suite)

    def deploy(self, checkpoint_id: str | None = None) -> Deployment:
        """Serve the best-ranked checkpoint, or the named one."""
        request = DeploymentRequest(checkpoint_id=checkpoint_id)
        return ask(self.context, "deployment.sync_best", request=request, answer=Deployment)

    def rollback(self, release_id: str | None = None, *, reason: str = "asked for") -> Deployment:
        """Serve the release before, or the named one."""
        request = RollbackRequest(release_id=release_id, reason=reason)
        return ask(self.context, "deployment.rollback", request=request, answer=Deployment)

    def status(self) -> SystemStatus:
        """What every part is doing, and `unknown` where nothing says so."""
        return system_status(self.context)


def ask(context: Context, task: str, *, request: Record, answer: type[R]) -> R:
    """Send a task, wait for its answer; `NoAnswer`, `BrokerUnavailable`, `TaskFailed` say why none came."""
    timeout = ANSWER_SECONDS + context.settings.deployment.timeout_seconds
    try:
        message_id = context.send(Message(task, request))
        result = context.celery.AsyncResult(message_id)
        return answer.model_validate(result.get(timeout=timeout, disable_sync_subtasks=False))
    except CeleryTimeoutError:
        raise NoAnswer(
            f"No control worker answered {task} within {timeout:g} s.",
            remedy="The request is still in the queue; `tandem status` shows whether the worker is up.",
        ) from None
    except (OperationalError, RedisError) as error:
        raise broker_unavailable(context.celery, error=error) from None
    except TandemError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a worker raised comes back by name
        raise TaskFailed(
            f"{task} failed in its worker: {type(error).__name__}: {error}.",
            remedy=f"The traceback is in {context.settings.paths.logs / 'control.log'}.",
        ) from None


def _absolute(path: str | Path) -> str:
    """A path that means the same file to the worker, whichever directory it runs in."""
    return str(Path(path).expanduser().absolute())
