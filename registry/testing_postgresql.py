"""A PostgreSQL server of one's own, for tests and benchmarks: real, private, and gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import RegistryUnavailable

PACKAGED = Path("/usr/lib/postgresql")  # Debian keeps the server's programs off the path
START_SECONDS = 60


@contextmanager
def postgresql_server(*, is_durable: bool = True, password: str | None = None) -> Iterator[str]:
    """Start a server on a socket of its own; the SQLAlchemy URL of an empty database.

    One that is not durable answers faster: for tests of everything but a power cut. Where there is a password
    nobody enters without it, and the URL does not tell it.
    `RegistryUnavailable` where PostgreSQL is not installed.
    """
    programs = _find_programs()
    with tempfile.TemporaryDirectory(prefix="tandem-postgresql-") as name:
        directory = Path(name)
        user = _unprivileged_user()
        if user is not None:
            shutil.chown(directory, user)
        data = directory / "data"
        initdb: list[str | Path] = [programs / "initdb", "--pgdata", data, "--username=tandem"]
        _run([*initdb, *_entrance(directory, password=password, user=user)], user=user)
        options = f"-c listen_addresses='' -c unix_socket_directories={directory} -c max_connections=60"
        # Far from UTC: times must come back right all the same.
        options += " -c timezone=Pacific/Chatham"
        options += "" if is_durable else " -c fsync=off -c synchronous_commit=off"
        control: list[str | Path] = [programs / "pg_ctl", "--pgdata", data, "--wait"]
        _run([*control, "--log", directory / "log", "--options", options, "start"], user=user)
        try:
            yield f"postgresql+psycopg://tandem@/postgres?host={directory}"
        finally:
            _run([*control, "--mode=immediate", "stop"], user=user)


def _entrance(directory: Path, *, password: str | None, user: str | None) -> list[str]:
    """How `initdb` is told who may come in."""
    if password is None:
        return ["--auth=trust"]
    file = directory / "password"
    file.write_text(password)
    if user is not None:
        shutil.chown(file, user)
    return ["--auth=scram-sha-256", f"--pwfile={file}"]


def _find_programs() -> Path:
    packaged = sorted(PACKAGED.glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    if packaged:
        return packaged[-1]
    if found is not None:
        return Path(found).parent
    raise RegistryUnavailable(
        "PostgreSQL's server programs (initdb, pg_ctl) are not installed.",
        remedy="Install the package `postgresql`.",
    )


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _run(command: list[str | Path], *, user: str | None) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        user=user,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # not a pipe: the server would inherit it and keep it open
        stderr=subprocess.DEVNULL,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RegistryUnavailable(f"{command[0]} failed with exit code {done.returncode}.")
