"""Doors of training: submit, run, and the inbox."""

from __future__ import annotations

import logging
from pathlib import Path

from registry.errors import QueueFull, RegistryUnavailable, TandemError
from registry.messages import JobBell, Nothing, SubmittedJob, TrainingSubmission
from registry.queue import Seen
from registry.records import TrainingJob
from registry.states import JobState, Priority, is_final
from tasks.door import door
from workers import admission, inbox, queue_folders, signals, submission
from workers.context import Context
from workers.pipeline import announce, bell
from workers.runner import TrainingRun, claim
from workers.sent_events import told_at_the_end
from workers.shutdown import is_stopping

log = logging.getLogger(__name__)


@door("training.submit")
def submit(request: TrainingSubmission, context: Context) -> SubmittedJob:
    """Check a dataset, keep a copy, queue one job for it; the same job where it exists already."""
    return _submit(request, context)


def _submit(request: TrainingSubmission, context: Context) -> SubmittedJob:
    with told_at_the_end(context.celery):  # the worker that was rung waits for the row
        return submission.submit(
            request,
            settings=context.settings,
            registry=context.registry,
            ring=lambda job_id: context.ring([bell(job_id, priority=request.priority)]),
            message_id=context.message_id,
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
        if lease is not None:  # else another scan is at work
            _submit_files(context)


def _submit_files(context: Context) -> None:
    """A full queue keeps the files for that queue waiting, a file that cannot be handled itself alone."""

    def cannot(path: Path, error: OSError) -> None:
        context.told.once(path, log=log, words=f"{path} stays in the inbox: {error}")

    full: set[Priority] = set()
    for path, priority in inbox.ready(context.settings, on_error=cannot):
        if priority in full:
            continue
        try:
            _submit_file(path, priority=priority, context=context)
            context.told.is_over(path)
            context.told.is_over(priority)
        except QueueFull as error:
            full.add(priority)
            context.told.once(priority, log=log, words=f"The inbox keeps what is for {priority}: {error}")
        except OSError as error:
            cannot(path, error)


def _submit_file(path: Path, *, priority: Priority, context: Context) -> None:
    try:
        submitted = _submit(inbox.request_for(path, priority=priority), context)
    except (RegistryUnavailable, QueueFull):
        raise  # not the file's fault: it stays for the next scan
    except TandemError as error:
        inbox.refuse(path, settings=context.settings, reason=str(error))
        return
    job = submitted.job
    if not submitted.is_new and is_final(job.state) and job.state is not JobState.SUCCEEDED:
        inbox.refuse(path, settings=context.settings, reason=_way_on(job))
        return
    if not submitted.is_new:
        log.info("%s: the same job exists, %s, which is %s", path.name, job.id, job.state)
    inbox.done(path)


def _way_on(job: TrainingJob) -> str:
    """Nothing would ever be trained of the file: its content is known, and that job will not run."""
    retry = f"`tandem job retry {job.id}` takes it up again"
    if job.state is JobState.REJECTED:
        retry = f"`tandem job show {job.id}` tells why"
    anew = "`tandem submit FILE --force` trains it anew"
    return f"The same job exists: {job.id} is {job.state}. {retry}, {anew}."
