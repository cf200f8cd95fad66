"""From a request to a queued job: the same content and configuration give the same job."""

from __future__ import annotations

import json
from pathlib import Path

from config.settings import Settings
from registry import lineage, queue
from registry.errors import StaleWrite
from registry.files import sha256_text
from registry.ids import new_id
from registry.messages import SubmittedJob, TrainingSubmission
from registry.records import Dataset, TrainingJob
from registry.rows import read_rows
from registry.states import JobState
from registry.store import Registry, Transaction
from trainer.config.job import check_hyperparameters
from trainer.config.pinned import Pinned, profile_named
from workers import intake


def submit(request: TrainingSubmission, *, settings: Settings, registry: Registry) -> SubmittedJob:
    """Check everything, then add dataset and job in one transaction: no half-made job.

    Raises `DatasetError`, `NotFound` (parent, predecessor), `QueueFull` or the trainer's `ConfigError`.
    """
    how = pinned_for(request, settings=settings)
    profile = profile_named(how.profile)
    path = intake.locate(request.dataset, settings=settings)
    dataset = intake.take_dataset(path, settings=settings, now=registry.clock())
    intake.refuse_unfit(read_rows(Path(dataset.path)), name=path.name, profile=profile)
    with registry.reading() as tx:
        lineage.parent_for(tx, wish=request.parent)
        suite = lineage.active_suite(tx)
    if suite is not None:
        intake.refuse_overlap(dataset, suite=suite, limits=settings.contamination)
    with registry.transaction() as tx:
        dataset = _keep_dataset(tx, dataset=dataset)
        job = _job(
            request, dataset=dataset, path=path, how=how, max_length=settings.training.max_length, tx=tx
        )
        submitted, is_new = queue.submit(tx, job, actor=request.submitted_by, rules=settings.queue)
    return SubmittedJob(job=submitted, is_new=is_new)


def pinned_for(request: TrainingSubmission, *, settings: Settings) -> Pinned:
    """What the job is to be fixed to: the request over the host's settings over the trainer's defaults."""
    training = settings.training
    return Pinned(
        hyperparameters=check_hyperparameters({**training.hyperparameters, **request.hyperparameters}),
        profile=request.profile or training.profile,
        overlong=request.overlong or training.overlong,
    )


def _keep_dataset(tx: Transaction, *, dataset: Dataset) -> Dataset:
    known = tx.seek(Dataset, dataset.id)
    if known is None:
        tx.add(dataset, actor="control", reason=f"{dataset.num_rows} rows")
        return dataset
    if known.content_sha256 != dataset.content_sha256:
        raise StaleWrite(
            f"{dataset.id} names two contents: {known.content_sha256}, {dataset.content_sha256}."
        )
    return known


def _job(
    request: TrainingSubmission,
    *,
    dataset: Dataset,
    path: Path,
    how: Pinned,
    max_length: int,
    tx: Transaction,
) -> TrainingJob:
    hyperparameters = how.as_json()
    what = {"hyperparameters": hyperparameters, "max_length": max_length, "parent": request.parent}
    key = f"{dataset.id}:{sha256_text(json.dumps(what, sort_keys=True))[:16]}"
    return TrainingJob(
        id=new_id("job"),
        name=request.name or path.stem,
        state=JobState.SUBMITTED,
        priority=request.priority,
        dataset_id=dataset.id,
        hyperparameters=hyperparameters,
        max_length=max_length,
        parent=request.parent,
        not_before_at=request.not_before_at,
        after=request.after,
        dedupe_key=f"{key}:{new_id('again')}" if request.force else key,
        submitted_by=request.submitted_by,
        submitted_at=tx.now,
    )
