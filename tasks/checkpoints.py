"""Doors for what a person brings: a model directory, a validation suite."""

from __future__ import annotations

from registry.messages import CheckpointImport, SuiteBuild
from registry.records import Checkpoint, Suite
from tasks.door import door
from workers import imports
from workers.context import Context
from workers.pipeline import announce


@door("checkpoint.import")
def import_checkpoint(request: CheckpointImport, context: Context) -> Checkpoint:
    """Copy a model directory, register it, and ask for its evaluation."""
    checkpoint = imports.import_model(
        request, settings=context.settings, registry=context.registry, message_id=context.message_id
    )
    announce(context)
    return checkpoint


@door("suite.build")
def build_suite(request: SuiteBuild, context: Context) -> Suite:
    """Make a JSONL file the active validation suite, and ask for every evaluation on it."""
    suite = imports.import_suite(
        request, settings=context.settings, registry=context.registry, message_id=context.message_id
    )
    announce(context)
    return suite
