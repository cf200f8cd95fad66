"""Makes a Celery task of a function: arguments checked by contract, errors said in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

from celery import Task

from registry.errors import StaleWrite, TandemError
from registry.os_errors import outage
from registry.records import Record
from workers.app import app
from workers.context import Context, current_context
from workers.contracts import contract_of, parse_request
from workers.errors import TaskFailed

log = logging.getLogger(__name__)

REMEDIES = {
    "disk": "Free space on the worker's disk, or mend it; then ask again.",
    "network": "What lies on another machine does not answer; ask again later.",
}
Request = TypeVar("Request", bound=Record)
Handler = Callable[[Request, Context], Record | None]


def door(name: str) -> Callable[[Handler[Request]], Handler[Request]]:
    """Register a handler under a public name. It gets the parsed request and this process's context, with
    the id of the message, by which it knows one that is delivered again.

    A stale result is discarded quietly: somebody else has the work. Any other expected error becomes
    `TaskFailed` with its whole sentence, so that the caller reads what the worker knew. So does a disk that
    is full, or one on another machine that does not answer.
    """
    contract = contract_of(name)

    def register(handler: Handler[Request]) -> Handler[Request]:
        def run(task: Task[Any, Any], /, *values: Any, **fields: Any) -> dict[str, Any] | None:
            try:
                request = cast("Request", parse_request(name, fields=fields, values=values))
                result = handler(request, replace(current_context(), message_id=task.request.id))
            except StaleWrite as error:
                log.info("%s: stale, discarded: %s", name, error)
                return None
            except TandemError as error:
                raise TaskFailed(str(error)) from None
            except OSError as error:
                what = outage(error)
                if what is None:
                    raise
                raise TaskFailed(f"{name} could not do its work: {error}.", remedy=REMEDIES[what]) from None
            return None if result is None else result.model_dump(mode="json")

        run.__doc__ = handler.__doc__
        make_task = app.task(
            name=name,
            bind=True,
            acks_late=contract.acks_late,
            ignore_result=not contract.has_result,
            throws=(TaskFailed,),
        )
        make_task(run)
        return handler

    return register
