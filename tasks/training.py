"""Doors of training: submit, run, and the inbox."""

from __future__ import annotations

import logging
from pathlib import Path

from registry.errors import QueueFull, RegistryUnavailable, TandemError
from registry.messages import JobBell, Nothing, SubmittedJob, TrainingSubmission
from registry.queue import Seen
from registry.states import Priority
from tasks.door import door
from workers import admission, inbox, queue_folders, signals, submission
from workers.context import Context
from workers.pipeline import announce, bell
from workers.runner import TrainingRun, claim
from workers.shutdown import is_stopping

log = logging.getLogger(__name__)


@door("training.submit")
def submit(request: TrainingSubmission, context: Context) -> SubmittedJob:
    """Check a dataset, keep a copy, queue one job for it; the same job where it exists already."""
    return submission.submit(
        request,
        settings=context.settings,
        registry=context.registry,
        ring=lambda job: context.ring([bell(job.id, priority=job.priority)]),
    )


@door("training.run")
def train(request: JobBell, context: Context) -> None:
    """Train the first waiting job of this host's queues, whichever job the bell was for."""
    if is_stopping():
        return  # the sweep rings again
    with admission.to_train(context, rung_for=request.job_id) as seen:
        run = None if seen is None else _claim(context, seen=seen)
        if run is None:
            log.info("%s: nothing may run here now; what waits is rung again", request.job_id)
            return
        run.run()
    announce(context)
    _refresh_folders(context)


def _claim(context: Context, *, seen: Seen) -> TrainingRun | None:
    claimed = claim(
        context.registry, settings=context.settings, holder=context.actor, host=context.host, seen=seen
    )
    if claimed is None:
        return None
    return TrainingRun(
        job=claimed.job,
        lease=claimed.lease,
        sources=claimed.sources,
        registry=context.registry,
        settings=context.settings,
        actor=context.actor,
        should_stop=is_stopping,
        on_start=lambda: _refresh_folders(context),
        on_checkpoint=lambda: announce(context),
        take_signals=lambda: signals.obey(context),
    )


def _refresh_folders(context: Context) -> None:
    queue_folders.refresh_if_cheap(context.registry, settings=context.settings, allowance=context.folder_time)


@door("inbox.scan")
def scan(_request: Nothing, context: Context) -> None:
    """Obey the files in `control/`, submit each that lies complete in the inbox, move aside the others."""
    signals.obey(context)
    with context.holding("inbox") as lease:
        if lease is None:
            return  # another scan is at work
        for path, priority in inbox.ready(context.settings):
            _submit_file(path, priority=priority, context=context)


def _submit_file(path: Path, *, priority: Priority, context: Context) -> None:
    try:
        submit(inbox.request_for(path, priority=priority), context)
    except (RegistryUnavailable, QueueFull, OSError):
        raise  # not the file's fault: it stays for the next scan
    except TandemError as error:
        inbox.refuse(path, settings=context.settings, reason=str(error))
        return
    inbox.done(path)
