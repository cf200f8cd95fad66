"""Runs one training job: claim, train in a child process, record what comes back.

The lease decides. It is renewed every ten seconds together with the job's progress; a runner that lost it
kills its child and writes nothing more. No transaction is open while the trainer works.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from config.settings import Settings
from registry import commands, leases, queue
from registry.errors import RegistryUnavailable, StaleWrite, TandemError
from registry.ids import checkpoint_id
from registry.queue import Claimed, Seen, Sources
from registry.records import Checkpoint, JobProgress, Lease, TrainingJob
from registry.states import CheckpointState, Command, JobState
from registry.store import Registry
from trainer.messages import CheckpointSaved, ChildMessage, Failed, Finished, Progress, TrainingResult
from workers.child import Child, TrainerChild
from workers.devices import Device, open_device
from workers.failures import Policy, policy_for
from workers.job_files import write_job_file
from workers.projections import write_training_status
from workers.run_watch import RunWatch

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
COMMAND_SECONDS = 1.0


@dataclass
class TrainingRun:
    """One attempt at one job. `should_stop` says that the worker was told to end."""

    job: TrainingJob
    lease: Lease
    registry: Registry
    settings: Settings
    actor: str
    should_stop: Callable[[], bool]
    on_checkpoint: Callable[[], None]
    on_start: Callable[[], object] = lambda: None
    take_signals: Callable[[], object] = lambda: None
    command_seconds: float = COMMAND_SECONDS
    start_child: Callable[..., Child] = TrainerChild
    parent_pid: int = field(default_factory=os.getppid)
    device: Device | None = None
    sources: Sources | None = None
    _finished: Finished | None = None
    _failed: Failed | None = None
    _progress: JobProgress | None = None
    _renewed: float = field(default_factory=time.monotonic)
    _stop_requested_at: float | None = None
    _command: Command | None = None
    _asked: float = 0.0

    def __post_init__(self) -> None:
        """What is learnt of the run is kept by its watch."""
        device = self.device or open_device(self.settings.training.device)
        self._watch = RunWatch(self.job, registry=self.registry, device=device)

    def run(self) -> TrainingJob:
        """Train to an end and record it. The job as it stands afterwards."""
        try:
            job_file = self._prepare()
        except TandemError as error:
            return self._end_badly(kind="parent", message=str(error))
        log_file = self.settings.paths.logs / "jobs" / f"{self.job.id}.log"
        child = self.start_child(
            job_file, log_file=log_file, num_processes=self.settings.training.num_processes
        )
        try:
            self.on_start()
            self._follow(child)
            return self._end(child)
        except StaleWrite as error:
            log.warning("%s: %s Its result is discarded.", self.job.id, error)
            return self.job
        finally:
            child.end()
            self._write_status()

    def _prepare(self) -> Path:
        dataset, parent, suite = self.sources or self._find_sources()
        return write_job_file(self.job, dataset=dataset, parent=parent, suite=suite, settings=self.settings)

    def _find_sources(self) -> Sources:
        with self.registry.reading() as tx:
            # `claim` chose the parent; where it found none, this says why.
            return queue.sources_of(tx, self.job)

    def _follow(self, child: Child) -> None:
        """Hand on every message until the trainer is gone and its pipe is empty."""
        self._write_status()
        has_looked = False
        while True:
            message = child.next_message(timeout_seconds=POLL_SECONDS)
            if message is not None:
                self._take(message)
            elif child.return_code is not None:
                return
            elif not has_looked:  # a run that is over before its trainer is silent once needs no such look
                has_looked = True
                self._look_around()
            self._keep_lease(child)
            self._pass_on_stop(child)
            self._pass_on_command(child)

    def _take(self, message: ChildMessage) -> None:
        if isinstance(message, Progress):
            self._progress = self._watch.take(message)
            self._write_status()
        elif isinstance(message, CheckpointSaved):
            self._record_checkpoint(message)
        elif isinstance(message, Finished):
            self._finished = message
            self._catch_up(message)
        elif isinstance(message, Failed):
            self._failed = message
            self._note_divergence(message)

    def _note_divergence(self, failed: Failed) -> None:
        """An alert like the others: it stands with the job's last report, and among the events."""
        progress = self._progress or self.job.progress
        if failed.kind != "diverged":
            return
        alert = self._watch.note_divergence(failed.message, step=0 if progress is None else progress.step)
        if progress is not None:
            others = tuple(one for one in progress.alerts if one.kind != alert.kind)
            self._progress = progress.changed(alerts=(*others, alert))

    def _catch_up(self, finished: Finished) -> None:
        """The last report may be older than the end: a resumed run may have had no step left to take."""
        result = finished.result
        if self._progress is None or self._progress.step != result.step:
            fields = result.model_dump(include=set(JobProgress.model_fields) - {"tokens_per_second"})
            self._progress = JobProgress.model_validate({**fields, "reported_at": self.registry.clock()})

    def _keep_lease(self, child: Child) -> None:
        waited = time.monotonic() - self._renewed
        if waited < self.settings.training.heartbeat_seconds:
            return
        try:
            with self.registry.transaction() as tx:
                self.lease = leases.renew(tx, self.lease, seconds=self.settings.training.lease_seconds)
                self.job = tx.update(self.job, progress=self._progress or self.job.progress)
                self._watch.write_events(tx, actor=self.actor)
            self._watch.forget_events()
            self._renewed = time.monotonic()
        except RegistryUnavailable as error:
            log.warning("%s: the lease could not be renewed: %s", self.job.id, error)
            if waited >= self.settings.training.lease_seconds:
                child.end()
                raise StaleWrite(f"{self.job.id}: the lease ran out while the registry was away.") from error
        self._look_around()

    def _look_around(self) -> None:
        self._watch.look_around()
        self._write_status()

    def _pass_on_stop(self, child: Child) -> None:
        if os.getppid() != self.parent_pid:  # the worker was killed: this process must not outlive it
            child.end()
            raise StaleWrite(f"{self.job.id}: its worker is gone.")
        if not self.should_stop():
            return
        if self._stop_requested_at is None:
            self._stop_requested_at = time.monotonic()
            child.request("stop")
        elif time.monotonic() - self._stop_requested_at > self.settings.training.stop_grace_seconds:
            child.end()

    def _pass_on_command(self, child: Child) -> None:
        """Hand on what a person asked; looked up once a second, since a step may be as short."""
        now = time.monotonic()
        if self._command is not None or now - self._asked < self.command_seconds:
            return
        self._asked = now
        self.take_signals()
        with self.registry.reading() as tx:
            self._command = commands.pending(tx, job_id=self.job.id)
        if self._command is Command.CANCEL:
            child.end()
        elif self._command is not None:
            child.request("pause")

    def _record_checkpoint(self, saved: CheckpointSaved) -> None:
        record = Checkpoint(
            id=checkpoint_id(self.job.id, step=saved.step),
            state=CheckpointState.COMPLETE,
            origin="trained",
            job_id=self.job.id,
            parent_checkpoint_id=self.job.parent_checkpoint_id,
            dataset_id=self.job.dataset_id,
            step=saved.step,
            is_final=saved.is_final,
            path=saved.path,
            weights_sha256=saved.weights_sha256,
            train_loss=saved.train_loss,
            created_at=self.registry.clock(),
        )
        with self.registry.transaction() as tx:
            tx.check_lease(self.lease)
            # A resumed job may say again what its first attempt said before it was killed.
            if tx.seek(Checkpoint, record.id) is None:
                tx.add(record, actor=self.actor, reason=f"step {saved.step} of {self.job.name}")
            if saved.is_final:
                self.job = tx.update(self.job, final_checkpoint_id=record.id)
        self.on_checkpoint()

    def _end(self, child: Child) -> TrainingJob:
        self._write_alert_events()
        finished = self._finished
        if finished is not None and finished.result.state == "finished":
            return self._succeed(finished)
        if self._command is Command.CANCEL or (self._command and finished is not None):
            return self._obey()
        if finished is not None:
            return self._put_back(reason="the worker was told to stop; progress is saved")
        if self._failed is not None:
            message = f"{self._failed.message} {self._failed.remedy}".strip()
            return self._end_badly(kind=self._failed.kind, message=message)
        code = child.return_code
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        words = child.last_words()
        return self._end_badly(kind="killed", message=f"the trainer ended without a result ({how}). {words}")

    def _write_alert_events(self) -> None:
        if not self._watch.has_events:
            return
        with self.registry.transaction() as tx:
            tx.check_lease(self.lease)
            self.job = tx.update(self.job, progress=self._progress or self.job.progress)
            self._watch.write_events(tx, actor=self.actor)
        self._watch.forget_events()

    def _succeed(self, finished: Finished) -> TrainingJob:
        with self.registry.transaction() as tx:
            reason = f"{finished.result.num_steps} steps in {finished.result.duration_seconds:.1f} s"
            self.job = tx.transition(
                self.job,
                to=JobState.SUCCEEDED,
                lease=self.lease,
                actor=self.actor,
                reason=reason,
                progress=self._progress or self.job.progress,
                command=None,  # one that came too late
                note=_note(finished.result),
                finished_at=tx.now,
            )
            leases.release(tx, self.lease)
        return self.job

    def _obey(self) -> TrainingJob:
        with self.registry.transaction() as tx:
            tx.check_lease(self.lease)
            self.job = tx.update(self.job, progress=self._progress or self.job.progress)
            self.job = commands.obey(tx, self.job, lease=self.lease, actor=self.actor)
        return self.job

    def _put_back(self, *, reason: str) -> TrainingJob:
        with self.registry.transaction() as tx:
            self.job = queue.put_back(tx, self.job, lease=self.lease, actor=self.actor, reason=reason)
        return self.job

    def _end_badly(self, *, kind: str, message: str) -> TrainingJob:
        policy = policy_for(kind)
        with self.registry.transaction() as tx:
            if policy.rejects:
                self.job = queue.reject(
                    tx, self.job, kind=kind, message=message, lease=self.lease, actor=self.actor
                )
            else:
                self.job = queue.record_problem(
                    tx,
                    self.job,
                    kind=kind,
                    message=message,
                    can_retry=policy.can_retry,
                    actor=self.actor,
                    lease=self.lease,
                    not_before_at=self._not_before(policy, now=tx.now),
                )
        return self.job

    def _not_before(self, policy: Policy, *, now: datetime) -> datetime | None:
        if policy.backoff is None:
            return None
        return now + timedelta(seconds=policy.backoff.wait_seconds(num_failures=self.job.attempts + 1))

    def _write_status(self) -> None:
        job = self.job.changed(progress=self._progress or self.job.progress)
        write_training_status(
            self.settings.paths.status,
            job=job,
            now=self.registry.clock(),
            surroundings=self._watch.surroundings,
        )


def claim(
    registry: Registry, *, settings: Settings, holder: str, host: str = "", seen: Seen | None = None
) -> Claimed | None:
    """Take the first job of this host's queues that may run, with its parent fixed, or None.

    Also None where one was `seen` and another is the first by now: the device was judged for that one.
    """
    training = settings.training
    # A power cut that takes the claim back ends its holder too: the job then waits again, as it should.
    with registry.transaction(is_durable=False) as tx:
        return queue.claim_next(
            tx,
            queues=training.queues,
            holder=holder,
            seconds=training.lease_seconds,
            host=host,
            rules=settings.queue,
            seen=seen,
        )


def _note(result: TrainingResult) -> str:
    """What a person should know of rows that were not learnt whole."""
    parts = []
    if result.num_dropped_rows:
        parts.append(f"{result.num_dropped_rows} rows over max_length were left out")
    if result.num_truncated_rows:
        parts.append(f"{result.num_truncated_rows} rows over max_length were cut off")
    return "; ".join(parts)
