"""`python -m deploy.gate CONFIG`: the forced command of the command key on an intelligence host.

What the client asks ssh to run is ignored. Requests come on standard input, one `Envelope` a line; each is
answered on standard output by beats while it is at work, and a reply.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from deploy.config import GateConfig
from deploy.door import HttpDoor
from deploy.errors import DeployError
from deploy.gatekeeper import Gatekeeper
from deploy.wire import Beat, Envelope, Reply
from registry.values import Record

BEAT_SECONDS = 2.0
MAX_LINE_CHARS = 4_000_000

Answer = Callable[[Envelope], object]


def main(arguments: list[str]) -> int:
    """Serve until the other side hangs up."""
    try:
        (path,) = arguments
        config = GateConfig.model_validate_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        print(f"The gate cannot begin: {error}", file=sys.stderr)  # noqa: T201 - its client shows it
        return 2
    serve(make_gatekeeper(config), requests=sys.stdin, answers=sys.stdout)
    return 0


def make_gatekeeper(config: GateConfig) -> Gatekeeper:
    """One on this host's real server, clock and disk."""
    door = HttpDoor(
        config.server_url,
        admin_key=config.admin_key_file.read_text().strip() if config.admin_key_file.exists() else "",
        timeout_seconds=config.timeout_seconds,
    )
    return Gatekeeper(
        config, door=door, host=config.host, version=code_version(), clock=lambda: datetime.now(UTC)
    )


def serve(gatekeeper: Gatekeeper, *, requests: IO[str], answers: IO[str]) -> None:
    """Answer line by line; a line that is no request is answered too."""
    writer = _Writer(answers)
    while line := requests.readline(MAX_LINE_CHARS):
        with writer.beating():
            reply = answer_line(gatekeeper, line)
        writer.write(reply)


def answer_line(gatekeeper: Gatekeeper, line: str) -> Reply:
    """The reply to one line."""
    try:
        envelope = Envelope.model_validate_json(line)
        return Reply(value=gatekeeper.answer(envelope))
    except ValidationError as error:
        return Reply(error="DeployError", message=f"That is no request of this version: {error}"[:2000])
    except DeployError as error:
        return Reply(error=type(error).__name__, message=error.message, remedy=error.remedy)


def code_version() -> str:
    """Of this installation."""
    try:
        return version("tandem")
    except PackageNotFoundError:
        return "unknown"


class _Writer:
    """Lines to the client, from the thread that works and the one that beats."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, record: Record) -> None:
        with self._lock:
            self._stream.write(record.model_dump_json() + "\n")
            self._stream.flush()

    @contextmanager
    def beating(self) -> Iterator[None]:
        done = threading.Event()
        thread = threading.Thread(target=self._beat, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT_SECONDS):
            try:
                self.write(Beat())
            except OSError:
                return  # the client hung up; what is at work is finished all the same


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
