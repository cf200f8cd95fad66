import errno

import pytest

from registry.os_errors import outage, outage_behind


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_takes_nothing_is_told_from_other_errors(number: int) -> None:
    assert outage(OSError(number, "no")) == "disk"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        OSError(errno.ESTALE, "stale file handle"),
        TimeoutError("timed out"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_network_that_is_away_is_told_from_other_errors(error: OSError) -> None:
    assert outage(error) == "network"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no"),
        PermissionError(errno.EACCES, "no"),
        BrokenPipeError(errno.EPIPE, "a child is gone"),
        OSError("a library's own"),
        ValueError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_neither_is_neither(error: Exception) -> None:
    assert outage(error) is None


def test_an_error_is_known_by_what_it_was_raised_from() -> None:
    middle, top = ValueError("cannot be read"), RuntimeError("no weights")
    middle.__cause__ = OSError(errno.EIO, "no")
    top.__cause__ = middle
    assert outage_behind(top) == "disk"
    assert outage_behind(RuntimeError("no weights")) is None
