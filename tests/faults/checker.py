"""The one judge of the fault matrix: reads registry, event log and disk, and says what is not true.

Each function gives sentences; none means that nothing was found. They know nothing of the fault that was
injected but the problems that it may cost a job.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from registry.errors import IllegalTransition, ManifestError
from registry.manifests import Manifest, verify
from registry.queue import resource_of
from registry.records import Checkpoint, Dataset, Event, Lease, TrainingJob
from registry.states import CheckpointState, JobState, State, check_transition, is_final
from registry.store import Transaction
from trainer.core.trace import TraceLine, read_trace

CLAIM = re.compile(r"claimed with token (\d+)")
STATES: dict[str, tuple[type[State], type[TrainingJob] | type[Checkpoint]]] = {
    "TrainingJob": (JobState, TrainingJob),
    "Checkpoint": (CheckpointState, Checkpoint),
}


@dataclass(frozen=True)
class Submitted:
    """A file that somebody was told was taken, or that lies in the inbox."""

    name: str
    content_sha256: str
    num_rows: int


def job_of(tx: Transaction, submitted: Submitted) -> TrainingJob | None:
    """The job of a submitted file, where it became one."""
    datasets = tx.find(Dataset, content_sha256=submitted.content_sha256)
    jobs = tx.find(TrainingJob, dataset_id=[dataset.id for dataset in datasets]) if datasets else []
    return jobs[0] if jobs else None


def check(
    tx: Transaction,
    *,
    submitted: Sequence[Submitted],
    earlier: Sequence[Submitted] = (),
    may_cost: Iterable[str] = (),
) -> list[str]:
    """Everything that the registry and the disk can tell of these submissions."""
    found = [*jobs_lost_or_doubled(tx, submitted=submitted, earlier=earlier), *illegal_events(tx)]
    for one in submitted:
        job = job_of(tx, one)
        if job is not None:
            found += false_ends(tx, job, may_cost=frozenset(may_cost))
            found += bad_checkpoints(tx, job)
            found += wrong_rows(tx, job, num_rows=one.num_rows)
    return [*found, *held_leases(tx)]


def jobs_lost_or_doubled(
    tx: Transaction, *, submitted: Sequence[Submitted], earlier: Sequence[Submitted]
) -> Iterator[str]:
    """Each submitted file is one job, and there is no job of anything else."""
    content = {dataset.id: dataset.content_sha256 for dataset in tx.find(Dataset)}
    num_jobs = Counter(content.get(job.dataset_id, "") for job in tx.find(TrainingJob))
    for one in submitted:
        if num_jobs[one.content_sha256] != 1:
            yield f"{one.name} became {num_jobs[one.content_sha256]} jobs"
    known = {one.content_sha256 for one in (*submitted, *earlier)}
    for sha256 in sorted(set(num_jobs) - known):
        yield f"there is a job of the content {sha256!r}, which nobody submitted"


def illegal_events(tx: Transaction) -> Iterator[str]:
    """Events of each job and checkpoint form one chain of legal steps that ends at the row's state."""
    chains: defaultdict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in tx.find(Event):
        if event.kind in STATES:
            chains[event.kind, event.subject_id].append(event)
    for (kind, subject_id), events in chains.items():
        row = tx.seek(STATES[kind][1], subject_id)
        yield from broken_links(events, states=STATES[kind][0])
        if row is None:
            yield f"{subject_id} has events and no row"
        elif str(row.state) != events[-1].after:
            yield f"{subject_id} is {row.state}, and its last event says {events[-1].after}"
    for kind, (_, record) in STATES.items():
        for row in tx.find(record):
            if (kind, row.id) not in chains:
                yield f"{row.id} has a row and no event"


def broken_links(events: Sequence[Event], *, states: type[State]) -> Iterator[str]:
    """What is wrong with one record's chain."""
    first, token = events[0], 0
    if first.before is not None:
        yield f"{first.subject_id} begins at {first.before}, not at nothing"
    for before, after in pairwise(events):
        if after.before != before.after:
            yield f"{after.subject_id}: event {after.id} starts at {after.before}, after {before.after}"
            continue
        try:
            check_transition(states(before.after), after=states(after.after))
        except IllegalTransition as error:
            yield f"{after.subject_id}: event {after.id}: {error.message}"
    for event in events:
        claim = CLAIM.search(event.reason)
        if claim and int(claim[1]) <= token:
            yield f"{event.subject_id}: token {claim[1]} was given after token {token}"
        token = int(claim[1]) if claim else token


def false_ends(tx: Transaction, job: TrainingJob, *, may_cost: frozenset[str]) -> Iterator[str]:
    """The job succeeded, once, truly, and was charged with nothing that did not happen."""
    name = f"{job.id} ({job.name})"
    if not is_final(job.state):
        yield f"{name} has not ended: it is {job.state}"
    elif job.state is not JobState.SUCCEEDED:
        yield f"{name} is {job.state}: {[problem.message for problem in job.problems]}"
    num_ends = sum(
        is_final(JobState(event.after)) for event in tx.find(Event, kind="TrainingJob", subject_id=job.id)
    )
    if num_ends > 1:
        yield f"{name} ended {num_ends} times"
    if job.attempts != len(job.problems):
        yield f"{name} counts {job.attempts} bad attempts and {len(job.problems)} problems"
    for problem in job.problems:
        if problem.kind not in may_cost:
            yield f"{name} is charged with {problem.kind}, which the fault does not cause: {problem.message}"
    progress = job.progress
    if job.state is JobState.SUCCEEDED and (progress is None or progress.step != progress.num_steps):
        yield f"{name} succeeded and reports {progress and (progress.step, progress.num_steps)}"


def bad_checkpoints(tx: Transaction, job: TrainingJob) -> Iterator[str]:
    """Every checkpoint of the job verifies; a succeeded one has its last step as final checkpoint."""
    checkpoints = tx.find(Checkpoint, job_id=job.id)
    for checkpoint in checkpoints:
        found = _verified(checkpoint)
        if isinstance(found, str):
            yield f"{checkpoint.id}: {found}"
        elif (found.weights_sha256, found.job_id, found.step) != (
            checkpoint.weights_sha256,
            job.id,
            checkpoint.step,
        ):
            yield f"{checkpoint.id}: its manifest is that of another checkpoint"
        elif checkpoint.is_final != (found.step == found.num_steps):
            yield f"{checkpoint.id}: step {found.step} of {found.num_steps}, is_final={checkpoint.is_final}"
    finals = [checkpoint.id for checkpoint in checkpoints if checkpoint.is_final]
    wanted = [job.final_checkpoint_id] if job.state is JobState.SUCCEEDED else []
    if job.state is JobState.SUCCEEDED and finals != wanted:
        yield f"{job.id} names {job.final_checkpoint_id} as its last checkpoint; final are {finals}"


def wrong_rows(tx: Transaction, job: TrainingJob, *, num_rows: int) -> Iterator[str]:
    """In the lineage of the final weights, the optimizer saw every row as often as there are epochs."""
    final = None if job.final_checkpoint_id is None else tx.seek(Checkpoint, job.final_checkpoint_id)
    if final is None:
        yield f"{job.id} has no final checkpoint whose rows could be counted"
        return
    lines, missing = lineage_of(read_trace(Path(final.path).parent), step=final.step)
    yield from (f"{job.id}: {sentence}" for sentence in missing)
    num_seen = Counter(row for line in lines for row in line.rows)
    num_epochs = job.hyperparameters.get("num_epochs", 1)
    wrong = {row: num_seen[row] for row in range(1, num_rows + 1) if num_seen[row] != num_epochs}
    if wrong:
        yield f"{job.id}: rows trained other than {num_epochs} times (row: times): {wrong}"
    unknown = sorted(set(num_seen) - set(range(1, num_rows + 1)))
    if unknown:
        yield f"{job.id}: rows {unknown} were trained and are not in its file"


def lineage_of(lines: Sequence[TraceLine], *, step: int) -> tuple[list[TraceLine], list[str]]:
    """The steps that made a step's weights, from the last attempt back to step 1, and what is missing."""
    taken: list[TraceLine] = []
    end = len(lines)
    while step > 0:
        saver = _saver(lines[:end], step=step)
        if saver is None:
            return taken, [f"no attempt is on record that took step {step}"]
        own = [line for line in lines if line.attempt == saver.attempt and line.what == "taken"]
        mine = [line for line in own if line.step <= step]
        if [line.step for line in mine] != list(range(saver.resumed_from_step + 1, step + 1)):
            steps = [line.step for line in mine]
            return taken, [f"{saver.attempt}, from step {saver.resumed_from_step}, took the steps {steps}"]
        taken += mine
        end = next(index for index, line in enumerate(lines) if line.attempt == saver.attempt)
        step = saver.resumed_from_step
    return taken, []


def held_leases(tx: Transaction) -> list[str]:
    """Leases of jobs that have not been given back. Those of the loops are taken at every tick."""
    return [
        f"the lease {lease.id} is still held by {lease.holder} until {lease.expires_at:%H:%M:%S}"
        for lease in tx.find(Lease)
        if lease.id.startswith(resource_of("")) and not lease.is_expired(now=tx.now)
    ]


def _saver(lines: Sequence[TraceLine], *, step: int) -> TraceLine | None:
    """The attempt that saved a step last; killed before it could write so, the one that took it last."""
    for what in ("saved", "taken"):
        found = [line for line in lines if line.what == what and line.step == step]
        if found:
            return found[-1]
    return None


def _verified(checkpoint: Checkpoint) -> Manifest | str:
    try:
        return verify(Path(checkpoint.path))
    except ManifestError as error:
        return error.message
