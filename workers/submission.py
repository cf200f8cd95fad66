"""From a request to a queued job: the same content and configuration give the same job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from config.settings import Settings
from registry import lineage, queue
from registry.errors import StaleWrite
from registry.files import sha256_text
from registry.ids import id_of, new_id
from registry.messages import SubmittedJob, TrainingSubmission
from registry.records import Dataset, Suite, TrainingJob
from registry.rows import read_rows
from registry.states import JobState
from registry.store import Registry, Transaction
from trainer.config.job import check_hyperparameters
from trainer.config.pinned import Pinned, profile_named
from workers import intake

BELL_LEAD_SECONDS = 0.05  # half of what a worker waits for a row that it was rung for


def submit(
    request: TrainingSubmission,
    *,
    settings: Settings,
    registry: Registry,
    ring: Callable[[TrainingJob], None] = lambda _job: None,
    message_id: str | None = None,
) -> SubmittedJob:
    """Check everything, then add dataset and job in one transaction: no half-made job.

    The bell is rung as soon as the data lies ready, so that the worker wakes while the rest is checked and
    written: who comes too early waits for the row (`workers/admission.py`), and where it takes longer than
    that, it is rung again. Where the job is known or refused, whoever came goes after a moment.

    A message that comes again gives the job that it gave before, also where it is forced.

    Raises `DatasetError`, `NotFound` (parent, predecessor), `QueueFull` or the trainer's `ConfigError`.
    """
    how = pinned_for(request, settings=settings)
    profile = profile_named(how.profile)
    path = intake.locate(request.dataset, settings=settings)
    dataset = intake.take_dataset(path, settings=settings, now=registry.clock())
    intake.refuse_unfit(read_rows(Path(dataset.path)), name=path.name, profile=profile)
    key = _dedupe_key(request, dataset=dataset, how=how, settings=settings, message_id=message_id)
    wish = _job(
        request, dataset=dataset, path=path, how=how, key=key, settings=settings, now=registry.clock()
    )
    rung_at = time.monotonic()
    ring(wish)
    with registry.reading() as tx:
        lineage.parent_for(tx, wish=request.parent)
        suite = lineage.active_suite(tx)
    job, is_new = _write(wish, dataset=dataset, suite=suite, settings=settings, registry=registry)
    if job.state is JobState.QUEUED and time.monotonic() - rung_at > BELL_LEAD_SECONDS:
        ring(job)
    # Nobody but the very same message can have made a job with a forced key.
    return SubmittedJob(job=job, is_new=is_new or request.force)


def pinned_for(request: TrainingSubmission, *, settings: Settings) -> Pinned:
    """What the job is to be fixed to: the request over the host's settings over the trainer's defaults."""
    training = settings.training
    return Pinned(
        hyperparameters=check_hyperparameters({**training.hyperparameters, **request.hyperparameters}),
        profile=request.profile or training.profile,
        overlong=request.overlong or training.overlong,
    )


def _write(
    wish: TrainingJob, *, dataset: Dataset, suite: Suite | None, settings: Settings, registry: Registry
) -> tuple[TrainingJob, bool]:
    """Hold the data against the suite and queue the job; where another suite was built meanwhile, again."""
    while True:
        if suite is not None:
            intake.refuse_overlap(dataset, suite=suite, limits=settings.contamination)
        with registry.transaction() as tx:
            active = lineage.active_suite(tx)
            if active is None or (suite is not None and active.id == suite.id):
                _keep_dataset(tx, dataset=dataset)
                return queue.submit(tx, wish, actor=wish.submitted_by, rules=settings.queue)
        suite = active


def _keep_dataset(tx: Transaction, *, dataset: Dataset) -> None:
    known = tx.seek(Dataset, dataset.id)
    if known is None:
        tx.add(dataset, actor="control", reason=f"{dataset.num_rows} rows")
    elif known.content_sha256 != dataset.content_sha256:
        raise StaleWrite(
            f"{dataset.id} names two contents: {known.content_sha256}, {dataset.content_sha256}."
        )


def _dedupe_key(
    request: TrainingSubmission,
    *,
    dataset: Dataset,
    how: Pinned,
    settings: Settings,
    message_id: str | None,
) -> str:
    max_length = settings.training.max_length
    what = {"hyperparameters": how.as_json(), "max_length": max_length, "parent": request.parent}
    key = f"{dataset.id}:{sha256_text(json.dumps(what, sort_keys=True))[:16]}"
    if not request.force:
        return key
    return f"{key}:{new_id('again') if message_id is None else id_of('again', message_id)}"


def _job(
    request: TrainingSubmission,
    *,
    dataset: Dataset,
    path: Path,
    how: Pinned,
    key: str,
    settings: Settings,
    now: datetime,
) -> TrainingJob:
    return TrainingJob(
        id=new_id("job"),
        name=request.name or path.stem,
        state=JobState.SUBMITTED,
        priority=request.priority,
        dataset_id=dataset.id,
        hyperparameters=how.as_json(),
        max_length=settings.training.max_length,
        parent=request.parent,
        not_before_at=request.not_before_at,
        after=request.after,
        dedupe_key=key,
        submitted_by=request.submitted_by,
        submitted_at=now,
    )
