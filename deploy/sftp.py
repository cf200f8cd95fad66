"""Files by SFTP, where one of the hosts has no rsync: slower, no links, resumed where a file broke off."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import paramiko

from deploy.errors import DeployError, TransferFailed
from deploy.gateway import open_channel, open_client
from deploy.transfer import Endpoint, check_names
from deploy.wire import Slot

BLOCK_BYTES = 1 << 20
NUM_ATTEMPTS = 3
PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class Sftp:
    """`push` sends the named files of a directory."""

    endpoint: Endpoint
    silence_seconds: float
    bandwidth_kib: int = 0
    sleep: Callable[[float], None] = time.sleep

    def push(self, source: Path, *, names: Iterable[str], slot: Slot) -> None:
        """Send what is not there yet, again where the link broke; `TransferFailed` with the reason."""
        checked = check_names(names)
        for attempt in range(1, NUM_ATTEMPTS + 1):
            try:
                return self._push(
                    source, names=checked, into=PurePosixPath(slot.incoming_dir) / slot.directory
                )
            except (OSError, EOFError, paramiko.SSHException) as error:
                if attempt == NUM_ATTEMPTS:
                    raise TransferFailed(
                        f"SFTP to {self.endpoint} failed: {error or type(error).__name__}.",
                        remedy="Install rsync on both hosts, or let the data key use SFTP there.",
                    ) from error
                self.sleep(PAUSE_SECONDS * attempt)
        raise DeployError("unreachable")

    def _push(self, source: Path, *, names: list[str], into: PurePosixPath) -> None:
        with contextlib.closing(open_client(self.endpoint, silence_seconds=self.silence_seconds)) as client:
            channel = open_channel(
                client,
                silence_seconds=self.silence_seconds,
                begin=lambda it: it.invoke_subsystem("sftp"),
            )
            sftp = paramiko.SFTPClient(channel)
            for name in names:
                _make_parents(sftp, into=into, name=name)
                self._send(sftp, source / name, target=str(into / name))

    def _send(self, sftp: paramiko.SFTPClient, path: Path, *, target: str) -> None:
        there = _size(sftp, target)
        if there > path.stat().st_size:
            sftp.remove(target)
            there = 0
        with path.open("rb") as read, sftp.open(target, "ab" if there else "wb") as write:
            write.set_pipelined(True)
            read.seek(there)
            while block := read.read(BLOCK_BYTES):
                write.write(block)
                if self.bandwidth_kib:
                    self.sleep(len(block) / 1024 / self.bandwidth_kib)


def _make_parents(sftp: paramiko.SFTPClient, *, into: PurePosixPath, name: str) -> None:
    at = into
    for part in PurePosixPath(name).parts[:-1]:
        at /= part
        with contextlib.suppress(OSError):  # it is there
            sftp.mkdir(str(at))


def _size(sftp: paramiko.SFTPClient, target: str) -> int:
    try:
        found = sftp.lstat(target)
    except FileNotFoundError:
        return 0
    return (found.st_size or 0) if stat.S_ISREG(found.st_mode or 0) else 0
