"""Doors for a person who steers a training job: pause, resume, skip, cancel."""

from __future__ import annotations

from registry import commands
from registry.messages import CommandedJob, JobCommand
from registry.states import Command, JobState
from tasks.door import door
from workers.context import Context
from workers.pipeline import bell


@door("training.pause")
def pause(request: JobCommand, context: Context) -> CommandedJob:
    """Save at the next step and wait for `training.resume`."""
    return _give(request, command=Command.PAUSE, context=context)


@door("training.resume")
def resume(request: JobCommand, context: Context) -> CommandedJob:
    """Back to the queue, to go on from where it stood."""
    return _give(request, command=Command.RESUME, context=context)


@door("training.skip")
def skip(request: JobCommand, context: Context) -> CommandedJob:
    """To the end of its queue; it keeps its progress."""
    return _give(request, command=Command.SKIP, context=context)


@door("training.cancel")
def cancel(request: JobCommand, context: Context) -> CommandedJob:
    """Never run again; its checkpoints stay."""
    return _give(request, command=Command.CANCEL, context=context)


def _give(request: JobCommand, *, command: Command, context: Context) -> CommandedJob:
    with context.registry.transaction() as tx:
        job, is_in_effect = commands.give(
            tx, job_id=request.job_id, command=command, actor=context.actor, reason=request.reason
        )
    if job.state is JobState.QUEUED:
        context.ring([bell(job.id, priority=job.priority)])
    return CommandedJob(job=job, is_in_effect=is_in_effect)
