"""From a request to a queued job: the same content and configuration give the same job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from config.settings import Settings
from registry import lineage, queue
from registry.errors import StaleWrite
from registry.files import sha256_text
from registry.ids import id_of, new_id
from registry.messages import SubmittedJob, TrainingSubmission
from registry.records import Dataset, TrainingJob
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
    ring: Callable[[str], None] = lambda _job_id: None,
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
    job_id, rung_at = new_id("job"), time.monotonic()
    ring(job_id)
    key = _dedupe_key(request, dataset=dataset, how=how, settings=settings, message_id=message_id)
    naming = {"id": job_id, "name": request.name or path.stem, "dedupe_key": key}
    wish = _job(request, naming=naming, dataset=dataset, how=how, settings=settings, now=registry.clock())
    job, is_new = _write(wish, parent=request.parent, dataset=dataset, settings=settings, registry=registry)
    if job.state is JobState.QUEUED and time.monotonic() - rung_at > BELL_LEAD_SECONDS:
        ring(job.id)
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
    wish: TrainingJob, *, parent: str, dataset: Dataset, settings: Settings, registry: Registry
) -> tuple[TrainingJob, bool]:
    """Queue the job once its data was held against the suite: again where another was built meanwhile."""
    compared = None
    while True:
        with registry.transaction() as tx:
            lineage.parent_for(tx, wish=parent)
            suite = lineage.active_suite(tx)
            if suite is None or suite.id == compared:
                _keep_dataset(tx, dataset=dataset)
                return queue.submit(tx, wish, actor=wish.submitted_by, rules=settings.queue)
        intake.refuse_overlap(dataset, suite=suite, limits=settings.contamination)
        compared = suite.id


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
    naming: Mapping[str, str],
    dataset: Dataset,
    how: Pinned,
    settings: Settings,
    now: datetime,
) -> TrainingJob:
    return TrainingJob(
        **naming,
        state=JobState.SUBMITTED,
        priority=request.priority,
        dataset_id=dataset.id,
        hyperparameters=how.as_json(),
        max_length=settings.training.max_length,
        parent=request.parent,
        not_before_at=request.not_before_at,
        after=request.after,
        submitted_by=request.submitted_by,
        submitted_at=now,
    )
