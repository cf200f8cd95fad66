"""A lock that every process of this machine sees, whichever home it works for and whoever runs it.

It is a name in the abstract namespace of Unix sockets (`man 7 unix`): one process at a time can bear it, and
the kernel frees it when that one dies. There is no file, so no permission is in the way and nothing is left
behind. Containers see it where they share the host's network, as those of docker-compose.yml do.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PREFIX = "\0tandem/"
PEER = struct.Struct("3i")  # pid, uid, gid


class Taken(Exception):
    """Another process bears the name; 0 where its number cannot be seen from here."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid}" if pid else "a process that cannot be seen from here")
        self.pid = pid


@contextmanager
def bearing(name: str) -> Iterator[None]:
    """Bear a name that no other process of this machine bears meanwhile; `Taken` where one does.

    Elsewhere than on Linux there is no such namespace: nothing is locked.
    """
    if sys.platform != "linux":
        yield
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bearer:
        try:
            bearer.bind(PREFIX + name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Taken(_bearer_of(name)) from None
        bearer.listen()  # nobody is answered: who asks is told by the kernel whose it is
        yield


def _bearer_of(name: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as question:
        question.settimeout(0)
        try:
            question.connect(PREFIX + name)
            peer = question.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
        except OSError:  # it was given back just now, or too many asked
            return 0
    return int(PEER.unpack(peer)[0])
