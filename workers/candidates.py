"""What an evaluation needs, on the host that evaluates: sent there once, found there by content."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from config.settings import Settings
from deploy.cache import SUITE_NAME, Cache
from deploy.errors import DeployError
from registry.messages import EvaluationRequest
from workers.remotes import RemoteHost, open_remote

RESOURCE = "candidates"


class OpenHost(Protocol):
    """`open_remote`, or a fake of it."""

    def __call__(self, settings: Settings, *, host: str) -> AbstractContextManager[RemoteHost]:
        """Everything that can be asked of that host."""


def send(request: EvaluationRequest, *, settings: Settings, open_host: OpenHost = open_remote) -> str:
    """Bring model and suite to every host that evaluates; why none has them now, else empty.

    One host that has them suffices: another that takes the message says that it lacks them, and it is
    asked again.
    """
    problems = [
        _send_to(host, request, settings=settings, open_host=open_host) for host in settings.deploy.all_hosts
    ]
    return "" if "" in problems else "; ".join(problems)


def by_content(request: EvaluationRequest) -> EvaluationRequest:
    """The request without this host's paths."""
    return request.changed(
        model=request.model.changed(path=""),
        suite=request.suite.changed(path=""),
    )


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
