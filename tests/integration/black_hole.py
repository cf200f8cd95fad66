"""A way to Redis that swallows, once it is told to, what its open connections say: nobody hears of an end.

That is what a cable, a firewall or a lost host does. Or it answers what is said next with a reset, as a host
does that was away meanwhile. Connections that are made later are let through.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Self

SIZE = 65536


class BlackHole:
    """Listens on a port of its own; `swallow` ends every conversation without a word."""

    def __init__(self, *, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._is_swallowed: set[socket.socket] = set()
        self.port = int(self._listening.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listening, *self._open):
            one.close()

    def swallow(self) -> None:
        """What is said from now on over what is open now arrives nowhere."""
        self._is_swallowed.update(self._open)

    def reset(self) -> None:
        """Whoever says something next over what is open now is told that nobody knows the conversation."""
        for one in self._open:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while said := one.recv(SIZE):
                if one not in self._is_swallowed:
                    other.sendall(said)
            if one not in self._is_swallowed:
                other.shutdown(socket.SHUT_WR)
        except OSError:
            return
