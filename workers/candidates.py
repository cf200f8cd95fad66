"""What an evaluation needs, on the host that evaluates: sent there once, found there by content."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from config.settings import Settings
from deploy.cache import SUITE_NAME, Cache
from deploy.errors import DeployError
from registry.messages import EvaluationRequest
from workers.remotes import RemoteHost, open_remote
from workers.shutdown import is_stopping

RESOURCE = "candidates"
ASK_SECONDS = 5.0
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 60.0  # without a byte; meanwhile another host may be sent to


class OpenHost(Protocol):
    """`open_remote`, or a fake of it."""

    def __call__(self, settings: Settings, *, host: str) -> AbstractContextManager[RemoteHost]:
        """Everything that can be asked of that host."""


def send(
    request: EvaluationRequest,
    *,
    settings: Settings,
    host: str | None = None,
    open_host: OpenHost = open_remote,
) -> str:
    """Bring model and suite to the named host; why they are not there now, else empty.

    A host that the settings do not know by its name is one of those that they know by another, such as an
    address: they are brought to all of them, and one that has them suffices.
    """
    known = settings.deploy.all_hosts
    problems = [
        _send_to(name, request, settings=settings, open_host=open_host)
        for name in ([host] if host in known else known)
    ]
    return "" if "" in problems else "; ".join(problems)


def by_content(request: EvaluationRequest) -> EvaluationRequest:
    """The request without this host's paths."""
    return request.changed(
        model=request.model.changed(path=""),
        suite=request.suite.changed(path=""),
    )


def await_arrival(
    request: EvaluationRequest,
    *,
    settings: Settings,
    ask: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    should_stop: Callable[[], bool] = is_stopping,
) -> None:
    """Ask for what this host lacks, again and again, until it is here or nothing arrived for too long.

    A worker that was told to stop waits for nothing.

    A host waits for one candidate at a time and takes no other meanwhile: so hosts share the work by how fast
    they are, and each candidate goes to one.
    """
    cache = Cache(settings.paths.cache, max_bytes=settings.deploy.cache_bytes)
    num_bytes, moved_at, asked_at = -1, clock(), -math.inf
    while not _is_here(request, cache=cache) and clock() - moved_at < PATIENCE_SECONDS and not should_stop():
        if (found := _arriving_bytes(settings.paths.incoming)) != num_bytes:
            num_bytes, moved_at = found, clock()
        if clock() - asked_at >= ASK_SECONDS:
            asked_at = clock()
            ask()
        sleep(POLL_SECONDS)


@contextmanager
def at_hand(request: EvaluationRequest, *, settings: Settings) -> Iterator[tuple[EvaluationRequest, str]]:
    """The request with the paths of this host's cache, which keeps them meanwhile; else why not.

    A request that names paths is of this very machine and stays as it is.
    """
    if request.model.path:
        yield request, ""
        return
    cache = Cache(settings.paths.cache, max_bytes=settings.deploy.cache_bytes)
    with cache.using(request.model.sha256) as model, cache.using(request.suite.sha256) as suite:
        if model is None or suite is None:
            what = "checkpoint" if model is None else "suite"
            yield request, f"its {what} is not on this host yet, or was removed for others"
            return
        found = request.changed(
            model=request.model.changed(path=str(model)),
            suite=request.suite.changed(path=str(suite / SUITE_NAME)),
        )
        yield found, ""


def _is_here(request: EvaluationRequest, *, cache: Cache) -> bool:
    if request.model.path:
        return True
    return all(cache.path(what.sha256).is_dir() for what in (request.model, request.suite))


def _arriving_bytes(incoming: Path) -> int:
    """Of what comes; files vanish from there at any moment."""
    total = 0
    for directory, _, names in os.walk(incoming):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(directory) / name).stat().st_size
    return total


def _send_to(host: str, request: EvaluationRequest, *, settings: Settings, open_host: OpenHost) -> str:
    try:
        with open_host(settings, host=host) as remote, tempfile.TemporaryDirectory() as scratch:
            remote.candidates.send_suite(
                Path(request.suite.path), sha256=request.suite.sha256, scratch_dir=Path(scratch)
            )
            remote.candidates.send_model(Path(request.model.path), sha256=request.model.sha256)
    except DeployError as error:
        return f"{host}: {error}"
    return ""
