"""Doors for a person who steers training: commands to a job, places in the queue, draining a host."""

from __future__ import annotations

from registry.messages import CommandedJob, Drain, DrainedHost, JobCommand, Move, PriorityChange, Undrain
from registry.states import Command
from tasks.door import door
from workers import steering
from workers.context import Context


@door("training.pause")
def pause(request: JobCommand, context: Context) -> CommandedJob:
    """Save at the next step and wait for `training.resume`."""
    return steering.command(context, request, what=Command.PAUSE)


@door("training.resume")
def resume(request: JobCommand, context: Context) -> CommandedJob:
    """Back to the queue, to go on from where it stood."""
    return steering.command(context, request, what=Command.RESUME)


@door("training.skip")
def skip(request: JobCommand, context: Context) -> CommandedJob:
    """To the end of its queue; it keeps its progress."""
    return steering.command(context, request, what=Command.SKIP)


@door("training.stop")
def stop(request: JobCommand, context: Context) -> CommandedJob:
    """Save at the next step and end as `stopped`, saying what was not used."""
    return steering.command(context, request, what=Command.STOP)


@door("training.cancel")
def cancel(request: JobCommand, context: Context) -> CommandedJob:
    """Never run again; its checkpoints stay."""
    return steering.command(context, request, what=Command.CANCEL)


@door("training.retry")
def retry(request: JobCommand, context: Context) -> CommandedJob:
    """Back to the queue with three fresh attempts, to go on from its last checkpoint."""
    return steering.command(context, request, what=Command.RETRY)


@door("training.set_priority")
def set_priority(request: PriorityChange, context: Context) -> CommandedJob:
    """Put a job into another queue; it keeps its time of arrival."""
    return steering.set_priority(context, request)


@door("training.move")
def move(request: Move, context: Context) -> CommandedJob:
    """To the front of its queue, before another job, or to the end."""
    return steering.move(context, request)


@door("host.drain")
def drain(request: Drain, context: Context) -> DrainedHost:
    """Finish what runs on a host and take nothing new."""
    return steering.drain(context, request)


@door("host.undrain")
def undrain(request: Undrain, context: Context) -> DrainedHost:
    """Take work again."""
    return steering.undrain(context, request)
