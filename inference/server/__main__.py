"""`python -m inference.server CONFIG.json`: serve until SIGTERM or SIGINT, then finish and exit with 0."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from inference.errors import ServerConfigError, ServerError
from inference.server.config import ServerConfig, load_config, load_keys

logger = logging.getLogger("inference.server")


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 after a clean stop, 1 where the server cannot start, 2 for a wrong call."""
    if len(arguments) != 1:
        _say("usage: python -m inference.server CONFIG.json")
        return 2
    signal.signal(signal.SIGTERM, _exit_cleanly)
    signal.signal(signal.SIGINT, _exit_cleanly)
    try:
        config = load_config(Path(arguments[0]))
        load_keys(config)
        listener = _listen(config)
        _serve(config, listener=listener)
    except ServerError as error:
        _say(str(error))
        return 1
    return 0


def _serve(config: ServerConfig, *, listener: socket.socket) -> None:
    # Loading torch takes seconds: what is wrong with configuration or port is said before.
    from inference.server.app import make_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d", host, port)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(config),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=config.shutdown_grace_seconds,
        )
    )
    server.run(sockets=[listener])


def _listen(config: ServerConfig) -> socket.socket:
    """Bind before anything is loaded; `ServerConfigError` says who is in the way."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        # asyncio switches Nagle's algorithm off only where the protocol is named: else a stream's second
        # event waits for the client's delayed acknowledgement, 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        reason = "another process listens there" if is_taken else error.strerror
        raise ServerConfigError(
            f"Cannot listen on {config.host}:{config.port}: {reason}.",
            remedy="Stop it, or choose another port." if is_taken else "Check host and port.",
        ) from None
    return listener


def _exit_cleanly(_signal: int, _frame: object) -> None:
    """uvicorn raises the signal again once it has shut down; a stop that was asked for is no failure."""
    sys.exit(0)


def _say(message: str) -> None:
    sys.stderr.write(f"tandem server: {message}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
