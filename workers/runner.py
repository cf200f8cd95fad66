"""Runs one training job: claim, train in a child process, hand on what comes back.

The lease decides. It is renewed every ten seconds together with the job's progress; a runner that lost it
kills its child and writes nothing more. What the registry is told stands in `workers/run_record.py`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from config.settings import Settings
from registry import queue
from registry.errors import RegistryUnavailable, StaleWrite, TandemError
from registry.os_errors import outage
from registry.queue import Claimed, Seen, Sources
from registry.records import JobProgress, Lease, TrainingJob
from registry.states import Command
from registry.store import Registry
from trainer.messages import CheckpointSaved, ChildMessage, Failed, Finished, Progress, Warned
from workers.child import Child, TrainerChild
from workers.devices import Device, open_devices
from workers.job_files import write_job_file
from workers.oom_kills import KIND as OOM_KILLED
from workers.oom_kills import is_oom_kill, num_oom_kills
from workers.projections import write_training_status
from workers.run_record import RunRecord, lease_ran_out
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
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    count_oom_kills: Callable[[], int | None] = num_oom_kills
    _finished: Finished | None = None
    _failed: Failed | None = None
    _stop_requested_at: float | None = None
    _is_grace_over: bool = False
    _command: Command | None = None
    _asked: float | None = None
    _num_oom_kills: int | None = None

    def __post_init__(self) -> None:
        """What is learnt of the run is kept by its watch, and told by its record."""
        training = self.settings.training
        devices = open_devices(training.device, count=training.num_processes)
        device = self.device or devices[0]
        self._watch = RunWatch(self.job, registry=self.registry, device=device, num_devices=len(devices))
        self._record = RunRecord(
            self.job,
            self.lease,
            registry=self.registry,
            watch=self._watch,
            actor=self.actor,
            lease_seconds=training.lease_seconds,
            monotonic=self.monotonic,
            sleep=self.sleep,
        )

    def run(self) -> TrainingJob:
        """Train to an end and record it. The job as it stands afterwards."""
        try:
            return self._train()
        except StaleWrite as error:
            log.warning("%s: %s Its result is discarded.", self.job.id, error)
            return self._record.job

    def _train(self) -> TrainingJob:
        try:
            child = self._start()
        except StaleWrite:
            raise
        except TandemError as error:
            return self._record.end_badly(kind="parent", message=str(error))
        except OSError as error:
            message = f"the trainer could not be started: {error}"
            return self._record.end_badly(kind=outage(error) or "internal", message=message)
        try:
            # A trainer that has only just begun takes no memory worth a kill.
            self._num_oom_kills = self.count_oom_kills()
            self._try(self.on_start, what="what follows a start")
            self._follow(child)
            return self._end(child)
        finally:
            child.end()
            self._write_status()

    def _start(self) -> Child:
        # `claim` chose the parent; where it found none, asking again says why.
        dataset, parent, suite = self.sources or self._record.sources()
        job_file = write_job_file(
            self.job, dataset=dataset, parent=parent, suite=suite, settings=self.settings
        )
        log_file = self.settings.paths.logs / "jobs" / f"{self.job.id}.log"
        return self.start_child(
            job_file, log_file=log_file, num_processes=self.settings.training.num_processes
        )

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
            self._record.progress = self._watch.take(message)
            self._write_status()
        elif isinstance(message, CheckpointSaved):
            self._record.add_checkpoint(message)
        elif isinstance(message, Warned):
            self._watch.note_warning(message.message)
        elif isinstance(message, Finished):
            self._finished = message
            self._catch_up(message)
        elif isinstance(message, Failed):
            self._failed = message
            self._note_divergence(message)

    def _note_divergence(self, failed: Failed) -> None:
        """An alert like the others: it stands with the job's last report, and among the events."""
        progress = self._record.reported
        if failed.kind != "diverged":
            return
        alert = self._watch.note_divergence(failed.message, step=0 if progress is None else progress.step)
        if progress is not None:
            others = tuple(one for one in progress.alerts if one.kind != alert.kind)
            self._record.progress = progress.changed(alerts=(*others, alert))

    def _catch_up(self, finished: Finished) -> None:
        """The last report may be older than the end: a resumed run may have had no step left to take."""
        result, progress = finished.result, self._record.progress
        if progress is None or progress.step != result.step:
            fields = result.model_dump(include=set(JobProgress.model_fields) - {"tokens_per_second"})
            self._record.progress = JobProgress.model_validate(
                {**fields, "reported_at": self.registry.clock()}
            )

    def _keep_lease(self, child: Child) -> None:
        """What was not told is told again; a holder whose lease must have run out ends its trainer."""
        if not self._record.is_renewal_due(heartbeat_seconds=self.settings.training.heartbeat_seconds):
            return
        has_checkpoints, seconds_held = self._record.has_untold_checkpoints, self._record.seconds_held
        try:
            self._record.renew()
        except RegistryUnavailable as error:
            log.warning("%s: the lease could not be renewed: %s", self.job.id, error)
            if self._record.seconds_held >= self.settings.training.lease_seconds:
                child.end()
                raise lease_ran_out(self.job) from error
            return
        if has_checkpoints:
            self._try(self.on_checkpoint, what="what follows a checkpoint")
        if seconds_held >= self.settings.training.heartbeat_seconds:
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
            self._stop_requested_at = self.monotonic()
            child.request("stop")
        elif self.monotonic() - self._stop_requested_at > self.settings.training.stop_grace_seconds:
            self._is_grace_over = True
            child.end()

    def _pass_on_command(self, child: Child) -> None:
        """Hand on what a person asked; looked up once a second, since a step may be as short."""
        now = self.monotonic()
        is_early = self._asked is not None and now - self._asked < self.command_seconds
        if self._command is not None or is_early:
            return
        self._asked = now
        self._try(self.take_signals, what="the commands by file")
        try:
            self._command = self._record.command()
        except RegistryUnavailable as error:
            log.warning("%s: what was asked of it is looked up again: %s", self.job.id, error)
        if self._command is Command.CANCEL:
            child.end()
        elif self._command is not None:
            child.request("pause")

    def _end(self, child: Child) -> TrainingJob:
        finished = self._finished
        if finished is not None and finished.result.state == "finished":
            return self._record.succeed(finished.result)
        if self._command is Command.CANCEL or (self._command and finished is not None):
            return self._record.obey()
        if finished is not None:
            return self._record.put_back(reason="the worker was told to stop; progress is saved")
        if self._failed is not None:
            message = f"{self._failed.message} {self._failed.remedy}".strip()
            return self._record.end_badly(kind=self._failed.kind, message=message)
        if self._stop_requested_at is not None:
            return self._record.put_back(reason=self._why_unsaved(child))
        return self._end_dead(child)

    def _end_dead(self, child: Child) -> TrainingJob:
        how = _how(child)
        if is_oom_kill(child.return_code, before=self._num_oom_kills, after=self.count_oom_kills()):
            message = (
                f"the kernel killed the trainer for want of memory ({how}): its steps go on in smaller parts"
            )
            return self._record.end_badly(kind=OOM_KILLED, message=message)
        message = f"the trainer ended without a result ({how}). {child.last_words()}"
        return self._record.end_badly(kind="killed", message=message)

    def _why_unsaved(self, child: Child) -> str:
        """A worker's end costs the job no attempt, whether or not there was time to save."""
        seconds = self.settings.training.stop_grace_seconds
        why = f"nothing was saved within {seconds:g} s" if self._is_grace_over else f"unsaved: {_how(child)}"
        return f"the worker was told to stop; {why}; it goes on from its last checkpoint"

    def _write_status(self) -> None:
        """For people; the sweep writes it again, so a disk that is full ends no training."""
        job = self._record.job.changed(progress=self._record.reported)
        self._try(
            lambda: write_training_status(
                self.settings.paths.status,
                job=job,
                now=self.registry.clock(),
                surroundings=self._watch.surroundings,
            ),
            what="its status file",
        )

    def _try(self, do: Callable[[], object], *, what: str) -> None:
        """Do what somebody else does again by and by: it ends no training."""
        try:
            do()
        except (TandemError, OSError) as error:
            log.warning("%s: %s is left to the sweep: %s", self.job.id, what, error)


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


def _how(child: Child) -> str:
    code = child.return_code
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
