"""What the registry is told of one attempt at a job: lease, progress, checkpoints, and how it ended.

A registry that is away for a moment costs the attempt nothing. What it could not take is kept and told as
soon as it answers, at the latest with the end; and the end is told again and again for as long as the lease
may still be held. No transaction is open while the trainer works.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from registry import commands, leases, queue
from registry.errors import RegistryUnavailable, StaleWrite
from registry.ids import checkpoint_id
from registry.queue import Sources
from registry.records import Checkpoint, JobProgress, Lease, TrainingJob
from registry.states import CheckpointState, Command, JobState
from registry.store import Registry, Transaction
from trainer.messages import CheckpointSaved, TrainingResult
from workers import failures
from workers.run_watch import RunWatch

log = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_SECONDS = 1.0


@dataclass
class RunRecord:
    """Job and lease as the registry has them, and what it has yet to be told."""

    job: TrainingJob
    lease: Lease
    registry: Registry
    watch: RunWatch
    actor: str
    lease_seconds: float
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    progress: JobProgress | None = None
    _untold: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The lease was taken just now."""
        self._renewed = self.monotonic()
        self._failed_at: float | None = None

    @property
    def reported(self) -> JobProgress | None:
        """The newest progress: of this attempt, or of the one before."""
        return self.progress or self.job.progress

    @property
    def seconds_held(self) -> float:
        """Since the lease was taken or renewed."""
        return self.monotonic() - self._renewed

    @property
    def has_untold_checkpoints(self) -> bool:
        """True where a checkpoint stands on the disk of which the registry does not know."""
        return bool(self._untold)

    def is_renewal_due(self, *, heartbeat_seconds: float) -> bool:
        """In time, and at once where there is a checkpoint to tell of; after a failure a second later."""
        if self._failed_at is not None and self.monotonic() - self._failed_at < RETRY_SECONDS:
            return False
        return self.has_untold_checkpoints or self.seconds_held >= heartbeat_seconds

    def add_checkpoint(self, saved: CheckpointSaved) -> None:
        """Keep what the trainer announced until the registry is told next."""
        self._untold.append(
            Checkpoint(
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
        )

    def sources(self) -> Sources:
        """What the job begins with; `NotFound` says why training has nothing to start from."""

        def ask() -> Sources:
            with self.registry.reading() as tx:
                return queue.sources_of(tx, self.job)

        return self._while_held(ask)

    def command(self) -> Command | None:
        """What a person asked of the job; `RegistryUnavailable` where nobody can say."""
        with self.registry.reading() as tx:
            return commands.pending(tx, job_id=self.job.id)

    def renew(self) -> None:
        """Push the lease on and tell all that is new; `StaleWrite` where it is another's."""
        try:
            with self.registry.transaction() as tx:
                lease = leases.renew(tx, self.lease, seconds=self.lease_seconds)
                job = self._tell(tx)
        except RegistryUnavailable:
            self._failed_at = self.monotonic()
            raise
        self.lease, self._renewed, self._failed_at = lease, self.monotonic(), None
        self._told(job)

    def succeed(self, result: TrainingResult) -> TrainingJob:
        """The job is done."""

        def end(tx: Transaction, job: TrainingJob) -> TrainingJob:
            ended = tx.transition(
                job,
                to=JobState.SUCCEEDED,
                lease=self.lease,
                actor=self.actor,
                reason=f"{result.num_steps} steps in {result.duration_seconds:.1f} s",
                command=None,  # one that came too late
                note=_note(result),
                finished_at=tx.now,
            )
            leases.release(tx, self.lease)
            return ended

        return self._end(end)

    def obey(self) -> TrainingJob:
        """The job is what a person asked it to be."""
        return self._end(lambda tx, job: commands.obey(tx, job, lease=self.lease, actor=self.actor))

    def put_back(self, *, reason: str) -> TrainingJob:
        """The job waits in its place, and is charged nothing."""
        return self._end(
            lambda tx, job: queue.put_back(tx, job, lease=self.lease, actor=self.actor, reason=reason)
        )

    def end_badly(self, *, kind: str, message: str) -> TrainingJob:
        """The attempt is charged; what follows stands in the table of failures."""
        return self._end(
            lambda tx, job: failures.end_attempt(
                tx, job, kind=kind, message=message, lease=self.lease, actor=self.actor
            )
        )

    def _end(self, write: Callable[[Transaction, TrainingJob], TrainingJob]) -> TrainingJob:
        def tell() -> TrainingJob:
            with self.registry.transaction() as tx:
                return write(tx, self._tell(tx))

        self._told(self._while_held(tell))
        return self.job

    def _while_held(self, ask: Callable[[], T]) -> T:
        """Ask until the registry answers; `StaleWrite` once the lease must have run out."""
        while True:
            try:
                return ask()
            except RegistryUnavailable as error:
                if self.seconds_held >= self.lease_seconds:
                    raise lease_ran_out(self.job) from error
                log.warning("%s: the registry is away and is asked again: %s", self.job.id, error)
            self.sleep(RETRY_SECONDS)

    def _tell(self, tx: Transaction) -> TrainingJob:
        """Checkpoints, progress and events. They count as told once the transaction has ended well."""
        changes: dict[str, object] = {"progress": self.reported}
        for checkpoint in self._untold:
            # A resumed job may say again what its first attempt said before it was killed.
            if tx.seek(Checkpoint, checkpoint.id) is None:
                tx.add(checkpoint, actor=self.actor, reason=f"step {checkpoint.step} of {self.job.name}")
            if checkpoint.is_final:
                changes["final_checkpoint_id"] = checkpoint.id
        self.watch.write_events(tx, actor=self.actor)
        return tx.update(self.job, **changes)

    def _told(self, job: TrainingJob) -> None:
        self.job = job
        self._untold.clear()
        self.watch.forget_events()


def lease_ran_out(job: TrainingJob) -> StaleWrite:
    """What a holder says that may write nothing more."""
    return StaleWrite(f"{job.id}: the lease ran out while the registry was away.")


def _note(result: TrainingResult) -> str:
    """What a person should know of rows that were not learnt whole."""
    parts = []
    if result.num_dropped_rows:
        parts.append(f"{result.num_dropped_rows} rows over max_length were left out")
    if result.num_truncated_rows:
        parts.append(f"{result.num_truncated_rows} rows over max_length were cut off")
    return "; ".join(parts)
