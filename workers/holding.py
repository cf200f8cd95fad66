"""A drained intelligence host: its worker takes no messages, also after it is started again.

It reads no registry, so it is told by remote control and keeps a note in its own home. Whoever drains says it
once, the sweep again and again: what it missed while it was down or Redis away, it hears within 30 seconds.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from celery import signals
from celery.worker.control import control_command

from config.settings import load_settings
from workers.contracts import EVALUATION, HOLD, INTELLIGENCE, RELEASE

log = logging.getLogger(__name__)

QUEUES = (EVALUATION, INTELLIGENCE)
WHY = "drained from the training host; `tandem undrain` there lets it take work again\n"


@control_command(name=HOLD)
def hold(state: Any, **_: Any) -> dict[str, str]:
    """Take no messages from now on, whatever is restarted."""
    for name in QUEUES:
        if name in state.app.amqp.queues.consume_from:
            state.consumer.call_soon(state.consumer.cancel_task_queue, name)
    _note().parent.mkdir(parents=True, exist_ok=True)
    _note().write_text(WHY)
    return {"ok": "held"}


@control_command(name=RELEASE)
def release(state: Any, **_: Any) -> dict[str, str]:
    """Take messages again."""
    for name in QUEUES:
        if name not in state.app.amqp.queues.consume_from:
            state.consumer.call_soon(state.consumer.add_task_queue, name)
    _note().unlink(missing_ok=True)
    return {"ok": "released"}


@signals.celeryd_after_setup.connect
def stay_held(sender: str, instance: Any, **_: Any) -> None:
    """Before a worker takes its first message."""
    if not sender.startswith(f"{INTELLIGENCE}@") or not _note().exists():
        return
    log.warning("This host takes no work: %s", WHY.strip())
    instance.app.amqp.queues.deselect(QUEUES)


def _note() -> Path:
    return load_settings().paths.run / "held"
