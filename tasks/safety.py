"""Door of the sweep: what was lost is found, what is owed is sent again."""

from __future__ import annotations

from registry import asks, handled, judgements, queue
from registry.messages import Nothing
from tasks.door import door
from workers import failures, projections, steering
from workers.context import Context
from workers.pipeline import bells, owed
from workers.status import redis_status, system_status


@door("safety.sweep")
def sweep(_request: Nothing, context: Context) -> None:
    """Put back abandoned jobs, ring missing bells, send what is owed, write the status files."""
    _, depths = redis_status(context.settings, now=context.registry.clock())
    nodes = None if depths is None else steering.answering_nodes(context.celery)
    with context.registry.transaction() as tx:
        asks.put(tx, kind="tick", subject_id="sweep")  # by its age `status` knows that beat is alive
        failures.requeue_abandoned(tx, actor="sweep")
        queue.cancel_followers(tx, actor="sweep")
        judgements.prune(tx, actor="sweep")
        handled.forget_old(tx)
        steering.note_hosts(tx, nodes=nodes)
        held, free = steering.hosts_to_tell(tx)
        messages = owed(tx, settings=context.settings)
        if depths is not None:
            messages += bells(tx, num_messages=depths, rules=context.settings.queue)
    context.ring(messages)
    steering.tell_hosts(context.celery, hold=held, release=free)
    projections.refresh(context.registry, settings=context.settings)
    directory = context.settings.paths.status
    projections.write_status(directory, name="system_status", status=system_status(context, nodes=nodes))
