"""Registers what a person brings: a model directory as candidate or base, a file as validation suite."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from config.settings import Settings
from registry import handled, lineage
from registry.ids import id_of, new_id
from registry.manifests import Manifest
from registry.messages import CheckpointImport, SuiteBuild
from registry.records import Checkpoint, Dataset, Suite
from registry.states import CheckpointState
from registry.store import Registry, Transaction
from trainer.config.locked import check_base_model
from workers import intake

LEAVE_OUT = "They were submitted for training already: leave these questions out of the suite."


def import_model(
    request: CheckpointImport, *, settings: Settings, registry: Registry, message_id: str | None = None
) -> Checkpoint:
    """Copy and verify, then register. A base model that is registered already is given back.

    So is what this very message brought before. `ConfigError` for a base model that is not the locked one.
    """
    prefix = "base" if request.origin == "base" else "ckpt"
    record_id = new_id(prefix) if message_id is None else id_of(prefix, message_id)
    with registry.reading() as tx:
        brought = tx.seek(Checkpoint, record_id)
        if brought is not None:
            return brought
        parent_id = _parent_id(tx, request=request)
    source = intake.locate(request.path, settings=settings)
    if request.origin == "base":
        check_base_model(settings.training.locked, path=source)
    now = registry.clock()
    root = settings.paths.base_model if request.origin == "base" else settings.paths.checkpoints / "imported"
    into = root / record_id
    shutil.rmtree(into, ignore_errors=True)  # of a worker that was killed before it could register it
    manifest = intake.take_model(
        source, into=into, manifest_fields={"parent_checkpoint_id": parent_id}, now=now
    )
    record = _record(request, record_id=record_id, path=into, manifest=manifest, parent_id=parent_id, now=now)
    with registry.transaction() as tx:
        bases = tx.find(Checkpoint, weights_sha256=manifest.weights_sha256, origin="base")
        known = bases if request.origin == "base" else []
        if not known:
            tx.add(record, actor="control", reason=request.note or f"{request.origin} from {source}")
    if not known:
        return record
    shutil.rmtree(into, ignore_errors=True)  # nobody would ever name this copy
    return known[0]


def import_suite(
    request: SuiteBuild, *, settings: Settings, registry: Registry, message_id: str | None = None
) -> Suite:
    """Check a suite and make it the active one; `DatasetError` where training data overlaps it.

    A message that comes again takes no later suite's place.
    """
    source = intake.locate(request.path, settings=settings)
    suite = intake.take_suite(
        source, name=request.name, settings=settings, now=registry.clock(), scorer=request.scorer
    )
    checked: set[str] = set()
    while True:
        with registry.transaction() as tx:
            # What was submitted meanwhile was held against the suite before this one.
            unchecked = [dataset for dataset in tx.find(Dataset) if dataset.id not in checked]
            if not unchecked:
                is_first = handled.note(tx, message_id=message_id)
                return _activate(tx, suite=suite) if is_first else tx.get(Suite, suite.id)
        for dataset in unchecked:
            intake.refuse_overlap(dataset, suite=suite, limits=settings.contamination, remedy=LEAVE_OUT)
            checked.add(dataset.id)


def _activate(tx: Transaction, *, suite: Suite) -> Suite:
    for other in tx.find(Suite, is_active=True):
        tx.update(other, is_active=False)
    known = tx.seek(Suite, suite.id)
    if known is not None:
        return tx.update(known, is_active=True)
    tx.add(suite, actor="control", reason=f"{suite.num_rows} rows")
    return suite


def _parent_id(tx: Transaction, *, request: CheckpointImport) -> str | None:
    """A base model has no parent; an imported one descends from the base unless its request says more."""
    if request.origin == "base":
        return None
    return lineage.parent_for(tx, wish=request.parent_checkpoint_id or "base").id


def _record(
    request: CheckpointImport,
    *,
    record_id: str,
    path: Path,
    manifest: Manifest,
    parent_id: str | None,
    now: datetime,
) -> Checkpoint:
    return Checkpoint(
        id=record_id,
        state=CheckpointState.COMPLETE,
        origin=request.origin,
        parent_checkpoint_id=parent_id,
        path=str(path),
        weights_sha256=manifest.weights_sha256,
        note=request.note,
        created_at=now,
    )
