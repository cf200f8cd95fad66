"""Two narrow keys: one may write where files arrive, one may talk to the gate. Neither gets a shell."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.errors import TransferFailed

PLAIN_PATH_PATTERN = r"/[A-Za-z0-9._/@+=,-]+"
PUBLIC_KEY_PATTERN = r"ssh-ed25519 [A-Za-z0-9+/=]{60,100}( [A-Za-z0-9@._-]{1,100})?"


def authorized_keys(
    *,
    config_path: Path,
    incoming_dir: Path,
    python: Path,
    data_public_key: str,
    command_public_key: str,
    has_rsync: bool = True,
) -> list[str]:
    """The two lines for `authorized_keys` of the account that owns the releases.

    `restrict` forbids terminals, agents and forwarding. Without rsync there the data key gets SFTP, which
    cannot be held to a directory by a line here: such a key reads and writes whatever the account may.
    """
    for path in (config_path, incoming_dir, python):
        if not re.fullmatch(PLAIN_PATH_PATTERN, str(path)):
            raise TransferFailed(
                f"{str(path)!r} cannot stand in a forced command.",
                remedy="Use absolute paths of letters, digits and . _ - / @ + = , only.",
            )
    receive = f"rrsync -wo {incoming_dir}" if has_rsync else "internal-sftp"
    return [
        _line(receive, public_key=data_public_key),
        _line(f"{python} -m deploy.gate {config_path}", public_key=command_public_key),
    ]


def _line(command: str, *, public_key: str) -> str:
    key = public_key.strip()
    if not re.fullmatch(PUBLIC_KEY_PATTERN, key):
        raise TransferFailed(
            f"{key[:40]!r} is no public ed25519 key.", remedy="Make one: `ssh-keygen -t ed25519 -N ''`."
        )
    return f'command="{command}",restrict {key}'
