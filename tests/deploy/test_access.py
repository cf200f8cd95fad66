"""The lines of authorized_keys: two keys that can do one thing each."""

from pathlib import Path

import pytest

from deploy.access import authorized_keys
from deploy.errors import TransferFailed

PUBLIC = "ssh-ed25519 " + "A" * 68 + " tandem@train"


def lines(**changes: object) -> list[str]:
    fields = {
        "config_path": Path("/srv/run/gate.json"),
        "incoming_dir": Path("/srv/incoming"),
        "python": Path("/venv/bin/python"),
        "data_public_key": PUBLIC,
        "command_public_key": PUBLIC,
        **changes,
    }
    return authorized_keys(**fields)  # type: ignore[arg-type]


def test_each_key_is_tied_to_its_one_command() -> None:
    assert lines() == [
        f'command="rrsync -wo /srv/incoming",restrict {PUBLIC}',
        f'command="/venv/bin/python -m deploy.gate /srv/run/gate.json",restrict {PUBLIC}',
    ]


def test_without_rsync_there_the_data_key_gets_sftp() -> None:
    assert lines(has_rsync=False)[0] == f'command="internal-sftp",restrict {PUBLIC}'


@pytest.mark.parametrize("path", ["relative", "/a b", '/a"b', "/a,b\n"])
def test_a_path_that_would_break_the_line_is_refused(path: str) -> None:
    with pytest.raises(TransferFailed, match="cannot stand in a forced command"):
        lines(incoming_dir=Path(path))


@pytest.mark.parametrize("key", ["", "ssh-rsa AAAA", PUBLIC + '\ncommand="sh" ' + PUBLIC, "x" * 80])
def test_what_is_no_ed25519_key_is_refused(key: str) -> None:
    with pytest.raises(TransferFailed, match="is no public ed25519 key"):
        lines(data_public_key=key)
