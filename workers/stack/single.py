"""One part of the stack alone, as a container runs it: become its process, or ask whether it works."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from celery import Celery

from config.settings import Settings
from registry.errors import RegistryUnavailable, TandemError
from registry.schema import upgrade
from registry.store import Registry
from workers.errors import StackError
from workers.stack.gate import refresh_gate_config
from workers.stack.parts import Part, stack_parts
from workers.status import beat_status

BESIDE_THE_GATE = ("intelligence", "server")
log = logging.getLogger(__name__)

# A database server that starts beside this part, and is new, takes some seconds.
NUM_WAITS = 20
WAIT_SECONDS = 3.0

Replace = Callable[[str, tuple[str, ...], dict[str, str]], object]
Upgrade = Callable[[Registry], None]
Sleep = Callable[[float], None]


def run_part(settings: Settings, *, name: str, celery: Celery, replace: Replace = os.execvpe) -> None:
    """Become the named part. The control worker brings the registry up to date first: it stands beside it.

    What stands beside the gate tells it the settings that they start with.
    """
    settings.paths.prepare()
    part = find_part(settings, name=name, celery=celery)
    if name == "control":
        bring_up_to_date(settings)
    if name in BESIDE_THE_GATE:
        refresh_gate_config(settings)
    replace(part.command[0], part.command, {**os.environ, **part.environment})


def bring_up_to_date(settings: Settings, *, apply: Upgrade = upgrade, sleep: Sleep = time.sleep) -> None:
    """The registry's schema; a server that does not answer yet is waited for, a file is there or not."""
    registry = Registry(settings.database_url)
    for _ in range(NUM_WAITS if settings.registry_url is not None else 0):
        try:
            return apply(registry)
        except RegistryUnavailable as error:
            log.warning("%s Tried again in %.0f s.", error, WAIT_SECONDS)
            sleep(WAIT_SECONDS)
    return apply(registry)


def check_part(settings: Settings, *, name: str, celery: Celery) -> None:
    """`StackError` unless the named part of this host does its work at this moment."""
    part = find_part(settings, name=name, celery=celery)
    problem = _late_ticks(settings) if name == "beat" else _silence(part)
    if problem:
        raise StackError(f"{name} does not work: {problem}.")


def find_part(settings: Settings, *, name: str, celery: Celery) -> Part:
    """The part of that name; `StackError` names those that there are."""
    parts = {part.name: part for part in stack_parts(settings, celery=celery)}
    if name not in parts:
        raise StackError(f"There is no part {name}.", remedy=f"These are: {', '.join(parts)}.")
    return parts[name]


def _silence(part: Part) -> str | None:
    return None if part.is_ready() else "it does not answer"


def _late_ticks(settings: Settings) -> str | None:
    """Beat answers no questions: it works while the sweep that it rings for is done in time."""
    try:
        with Registry(settings.database_url).reading() as tx:
            status = beat_status(tx, sweep_seconds=settings.schedule.sweep_seconds)
    except TandemError as error:
        return error.message
    return None if status.state == "up" else status.detail
