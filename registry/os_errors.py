"""What an error of the operating system means: a disk that takes nothing, a network that is away, or else.

Neither is the fault of the work at hand, and both go away by themselves or by somebody's hand.
"""

from __future__ import annotations

import errno
from typing import Literal

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
# A home may lie on another machine (NFS): what is no file of this one fails like a connection.
NETWORK = frozenset(
    {
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.ESTALE,
    }
)


def outage(error: BaseException) -> Literal["disk", "network"] | None:
    """What is in the way, or None where the error says neither."""
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK:
        return "disk"
    return "network" if error.errno in NETWORK or isinstance(error, TimeoutError) else None


def outage_behind(error: BaseException) -> Literal["disk", "network"] | None:
    """The same of an error and of all that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        found = outage(cause)
        if found is not None:
            return found
        cause = cause.__cause__
    return None
