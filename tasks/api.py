"""The Python API.

    from tasks.api import Tandem
    job = Tandem().submit("data.jsonl", priority="high")
    job.wait()

Every call sends the same task that `celery call`, the command line and the inbox use.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from config.settings import Settings, load_settings
from registry.errors import TandemError
from registry.messages import ASKED, CommandedJob, DeploymentRequest, DrainedHost, SubmittedJob
from registry.records import Checkpoint, Comparison, Deployment, Host, Record, Suite, TrainingJob
from registry.status_files import SystemStatus
from tasks.watching import JobWatcher, Watch, progress_view
from workers.app import broker_unavailable
from workers.comparisons import Descent, compare_checkpoints
from workers.context import Context, Message, open_context
from workers.contracts import parse_request
from workers.errors import NoAnswer, RequestError, TaskFailed
from workers.stack.gate import door_seconds
from workers.status import system_status

R = TypeVar("R", bound=Record)

ANSWER_SECONDS = 60.0
LOOK_SECONDS = 5.0  # how long an answer is listened for before it is looked up


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
        show_progress: bool | None = None,
        on_change: Callable[[TrainingJob], None] | None = None,
    ) -> TrainingJob:
        """Wait until the job is finished and return its row; `NoAnswer` after the timeout.

        A bar on standard error shows its progress: by default only on a terminal; `True` writes lines
        elsewhere. `on_change` is called with the row after each change, the last one included.
        """
        watch = Watch(self.watcher(), timeout_seconds=timeout_seconds, poll_seconds=poll_seconds, sleep=sleep)
        with progress_view(show=show_progress) as view:
            for watched in watch.changes():
                if view is not None:
                    view.show(watched.line)
                if on_change is not None:
                    on_change(watched.job)
        return watched.job

    def watcher(self) -> JobWatcher:
        """Looks at the job and measures how fast it goes on."""
        return JobWatcher(self.context.registry, self.id, rules=self.context.settings.queue)

    def pause(self, *, reason: str = ASKED) -> bool:
        """Save at the next step, wait for `resume`. True where it is in effect, False where it was asked."""
        return self._command("pause", reason=reason)

    def resume(self, *, reason: str = ASKED) -> bool:
        """Back to the queue, from where it stood."""
        return self._command("resume", reason=reason)

    def stop(self, *, reason: str = ASKED) -> bool:
        """Save at the next step and end as `stopped`, saying what was not used."""
        return self._command("stop", reason=reason)

    def retry(self, *, reason: str = ASKED) -> bool:
        """Back to the queue with three fresh attempts, to go on from its last checkpoint."""
        return self._command("retry", reason=reason)

    def set_priority(self, priority: str, *, reason: str = ASKED) -> TrainingJob:
        """Put it into another queue; it keeps its time of arrival."""
        fields = {"job_id": self.id, "priority": priority, "reason": reason}
        return ask(self.context, "training.set_priority", fields=fields, answer=CommandedJob).job

    def move(self, *, before: str | None = None, to_end: bool = False, reason: str = ASKED) -> TrainingJob:
        """To the front of its queue, before another job of it, or to the end."""
        fields = {"job_id": self.id, "before_id": before, "to_end": to_end, "reason": reason}
        return ask(self.context, "training.move", fields=fields, answer=CommandedJob).job

    def skip(self, *, reason: str = ASKED) -> bool:
        """To the end of its queue; it keeps its progress."""
        return self._command("skip", reason=reason)

    def cancel(self, *, reason: str = ASKED) -> bool:
        """Never run again; its checkpoints stay."""
        return self._command("cancel", reason=reason)

    def _command(self, name: str, *, reason: str) -> bool:
        fields = {"job_id": self.id, "reason": reason}
        return ask(self.context, f"training.{name}", fields=fields, answer=CommandedJob).is_in_effect


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
        profile: str | None = None,
        overlong: str | None = None,
        force: bool = False,
        not_before: datetime | None = None,
        after: Sequence[str] = (),
        submitted_by: str = "python",
    ) -> JobHandle:
        """Submit a JSONL file for training. The same file and configuration give the same job.

        It starts at `not_before` (aware) at the earliest, and once every job of `after` ended well.
        """
        fields = {
            "dataset": _absolute(dataset),
            "priority": priority,
            "name": name,
            "parent": parent,
            "hyperparameters": {} if hyperparameters is None else hyperparameters,
            "profile": profile,
            "overlong": overlong,
            "force": force,
            "not_before_at": not_before,
            "after": after,
            "submitted_by": submitted_by,
        }
        submitted = ask(self.context, "training.submit", fields=fields, answer=SubmittedJob)
        return JobHandle(id=submitted.job.id, is_new=submitted.is_new, context=self.context)

    def job(self, job_id: str) -> JobHandle:
        """A handle on an existing job; `NotFound` where there is none."""
        parse_request("training.run", fields={"job_id": job_id})  # whatever is no text is refused
        with self.context.registry.reading() as tx:
            tx.get(TrainingJob, job_id)
        return JobHandle(id=job_id, is_new=False, context=self.context)

    def import_checkpoint(self, path: str | Path, *, as_base: bool = False, note: str = "") -> Checkpoint:
        """Register a model directory as a candidate, or as the base model."""
        origin = "base" if as_base else "imported"
        fields = {"path": _absolute(path), "origin": origin, "note": note}
        return ask(self.context, "checkpoint.import", fields=fields, answer=Checkpoint)

    def compare(self, left_id: str, right_id: str) -> tuple[Comparison, Descent]:
        """What changed from one checkpoint to another on the active suite, and how they are related."""
        return compare_checkpoints(
            self.context.registry, left_id=left_id, right_id=right_id, settings=self.context.settings.ranking
        )

    def build_suite(self, path: str | Path, *, name: str = "validation", scorer: str = "") -> Suite:
        """Make a JSONL file the active validation suite; `scorer` judges the rows that name none."""
        fields = {"path": _absolute(path), "name": name, "scorer": scorer}
        return ask(self.context, "suite.build", fields=fields, answer=Suite)

    def deploy(self, checkpoint_id: str | None = None) -> Deployment:
        """Serve the best-ranked checkpoint, or the named one."""
        fields = {"checkpoint_id": checkpoint_id}
        return ask(self.context, "deployment.sync_best", fields=fields, answer=Deployment)

    def rollback(self, release_id: str | None = None, *, reason: str = ASKED) -> Deployment:
        """Serve the release before, or the named one."""
        fields = {"release_id": release_id, "reason": reason}
        return ask(self.context, "deployment.rollback", fields=fields, answer=Deployment)

    def drain(
        self, host: str | None = None, *, after_job: str | None = None, reason: str = ASKED
    ) -> DrainedHost:
        """Let a host finish what it has and take nothing new; at once, or when a job is done."""
        fields = {"host": host or self._only_host(), "after_job_id": after_job, "reason": reason}
        return ask(self.context, "host.drain", fields=fields, answer=DrainedHost)

    def undrain(self, host: str | None = None, *, reason: str = ASKED) -> DrainedHost:
        """Let a host take work again."""
        fields = {"host": host or self._only_host(), "reason": reason}
        return ask(self.context, "host.undrain", fields=fields, answer=DrainedHost)

    def _only_host(self) -> str:
        with self.context.registry.reading() as tx:
            known = [host.id for host in tx.find(Host)]
        if len(known) == 1:
            return known[0]
        seen = ", ".join(known) or "none was seen yet"
        raise RequestError("Which host is meant?", remedy=f"Name one: {seen}.")

    def status(self) -> SystemStatus:
        """What every part is doing, and `unknown` where nothing says so."""
        return system_status(self.context)


def ask(context: Context, task: str, *, fields: Mapping[str, Any], answer: type[R]) -> R:
    """Send a task, wait for its answer; `NoAnswer`, `BrokerUnavailable`, `TaskFailed` say why none came.

    `RequestError` where the fields are not what its contract says: nothing is sent then.
    """
    request = parse_request(task, fields=fields)
    settings = context.settings
    timeout = ANSWER_SECONDS + door_seconds(settings)
    if settings.deploy.host is not None and isinstance(request, DeploymentRequest):
        timeout += settings.deploy.transfer_seconds  # the release travels first
    try:
        message_id = context.send(Message(task, request))
        result = context.celery.AsyncResult(message_id)
        return answer.model_validate(_answer_of(result, timeout_seconds=timeout))
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


def _answer_of(result: Any, *, timeout_seconds: float) -> Any:
    """Celery hears of results over one connection, and would wait in vain where that died without a word.

    Each `get` begins with a look at what is stored.
    """
    deadline = time.monotonic() + timeout_seconds
    while (left := deadline - time.monotonic()) > LOOK_SECONDS:
        with contextlib.suppress(CeleryTimeoutError):
            return result.get(timeout=LOOK_SECONDS, disable_sync_subtasks=False)
    return result.get(timeout=max(left, 0.1), disable_sync_subtasks=False)


def _absolute(path: object) -> object:
    """A path that means the same file to the worker, whichever directory it runs in.

    What is no path is left for the contract to refuse.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        return path
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:  # ~name, and nobody bears that name
        return str(path)
