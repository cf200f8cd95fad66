"""Brings the files of a parcel to another host by rsync over ssh, whole or not at all known to be there.

The argument list is sysrsync's; running it is ours (`deploy.runner`). Every name is checked first: rsync
takes a source that begins with `--rsync-path=` as a command for the other host.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sysrsync import get_rsync_command

from deploy.config import HOST_PATTERN, USER_PATTERN
from deploy.errors import TransferFailed
from deploy.runner import Finished, Runner, run_command
from deploy.wire import FILE_NAME_PATTERN, Slot

# rsync(1), EXIT VALUES; 255 is ssh's own.
RETRIED_CODES = {
    10: "the socket broke",
    12: "the protocol stream broke",
    30: "there was no data for too long",
    35: "the connection took too long",
    255: "ssh could not connect, or was cut off",
}
FINAL_CODES = {
    1: "the arguments are wrong, or the other side forbids an option",
    11: "a file could not be written or read: is the disk full?",
    23: "some files could not be transferred",
}
HOST_KEY_WORDS = ("Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED")
PERMISSION_WORDS = ("Permission denied",)
USER_WORDS = ("No user exists for uid",)  # ssh's own, before it connects
IO_TIMEOUT_SECONDS = 10
CONNECT_SECONDS = 10
NUM_ATTEMPTS = 4
PAUSE_SECONDS = (1.0, 3.0, 9.0)
# What ssh's own line and rsync's `-e` can carry without quotes.
PLAIN_PATH_PATTERN = r"/[A-Za-z0-9._/@+=,-]+"
READ_ONLY_MODES = "D0755,F0444"

Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Endpoint:
    """Where to connect, as whom, with which key, and who it must prove to be."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path

    def __post_init__(self) -> None:
        """`TransferFailed` for what ssh or rsync could take for anything but a name."""
        if not re.fullmatch(HOST_PATTERN, self.host) or not re.fullmatch(USER_PATTERN, self.user):
            raise TransferFailed(f"{self.user!r} at {self.host!r} is no account of a host.")
        for path in (self.key, self.known_hosts):
            if not re.fullmatch(PLAIN_PATH_PATTERN, str(path)):
                raise TransferFailed(
                    f"{str(path)!r} cannot be used with ssh.",
                    remedy="Use an absolute path of letters, digits and . _ - / @ + = , only.",
                )

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Rsync:
    """`push` sends the named files of a directory. Limits are those of one attempt."""

    endpoint: Endpoint
    transfer_seconds: float
    bandwidth_kib: int = 0
    delta: bool = False
    run: Runner = run_command
    sleep: Sleep = time.sleep

    def push(self, source: Path, *, names: Iterable[str], slot: Slot, use_base: bool) -> Finished:
        """Send, again where the link broke; `TransferFailed` with rsync's own words."""
        checked = check_names(names)
        with tempfile.NamedTemporaryFile("w", prefix="tandem-files-", suffix=".txt") as listed:
            listed.write("".join(f"{name}\n" for name in checked))
            listed.flush()
            both_know = slot.changed(knows_fsync=slot.knows_fsync and knows_fsync(self.run))
            first, resumed = (
                self.command(source, names_file=Path(listed.name), slot=used, use_base=use_base)
                for used in (both_know, both_know.changed(has_partial=True))
            )
            return self._attempt(first, resumed=resumed)

    def command(self, source: Path, *, names_file: Path, slot: Slot, use_base: bool) -> list[str]:
        """The argument list. Paths there are relative to the one directory that the data key may write."""
        if not source.is_absolute() or not re.fullmatch(r"[a-z]+-[A-Za-z0-9._-]+", slot.directory):
            raise TransferFailed(f"{str(source)!r} to {slot.directory!r} is no transfer between directories.")
        options = ["-a", "--no-owner", "--no-group", f"--chmod={READ_ONLY_MODES}", "--omit-dir-times"]
        # What arrived of a file is used by the delta search alone; `-W` would send it again.
        options.append("--no-whole-file" if self.delta or slot.has_partial else "-W")
        # Kept under its own name: what arrives is read by nobody before it is sealed, and rrsync 3.5 hands
        # rsync a partial directory in which it keeps nothing.
        options += ["--partial", f"--timeout={IO_TIMEOUT_SECONDS}"]
        options += [f"--link-dest=/{slot.base}"] if slot.base and use_base else []
        options += ["--fsync"] if slot.knows_fsync else []
        options += [f"--bwlimit={self.bandwidth_kib}"] if self.bandwidth_kib else []
        options += ["--stats", f"--files-from={names_file}", "-e", " ".join(ssh_command(self.endpoint))]
        command: list[str] = get_rsync_command(
            str(source),
            slot.directory + "/",
            destination_ssh=f"{self.endpoint.user}@{self.endpoint.host}",
            options=options,
        )
        return command

    def _attempt(self, command: list[str], *, resumed: list[str]) -> Finished:
        for pause in (*PAUSE_SECONDS[: NUM_ATTEMPTS - 1], None):
            ended = self._run(command)
            if ended.code == 0:
                return ended
            if _is_final(ended) or pause is None:
                raise self._failure(ended)
            self.sleep(pause)
            command = resumed
        raise AssertionError("unreachable")

    def _run(self, command: list[str]) -> Finished:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": "/nonexistent"}
        try:
            return self.run(command, timeout_seconds=self.transfer_seconds, environment=environment)
        except FileNotFoundError:
            raise TransferFailed(
                "There is no rsync on this host.", remedy="Install it: `apt-get install rsync`."
            ) from None

    def _failure(self, ended: Finished) -> TransferFailed:
        words = ended.errors or "it said nothing"
        if ended.code is None:
            return TransferFailed(
                f"rsync to {self.endpoint} did not end within {self.transfer_seconds:g} s: {words}",
                remedy="Raise TANDEM_DEPLOY__TRANSFER_SECONDS if the link is that slow.",
            )
        meaning = RETRIED_CODES.get(ended.code) or FINAL_CODES.get(ended.code) or "see rsync(1)"
        return TransferFailed(
            f"rsync to {self.endpoint} ended with {ended.code} ({meaning}): {words}", remedy=_remedy(ended)
        )


def check_names(names: Iterable[str]) -> list[str]:
    """The names of files inside a directory, sorted; `TransferFailed` for any other."""
    found = sorted(names)
    for name in found:
        if not re.fullmatch(FILE_NAME_PATTERN, name):
            raise TransferFailed(
                f"{name!r} cannot be transferred.",
                remedy="Names of files are letters, digits and . _ + @ -, and begin with none of the signs.",
            )
    return found


def ssh_command(endpoint: Endpoint) -> list[str]:
    """ssh that asks nothing, trusts known hosts only and offers one key."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(endpoint.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ConnectTimeout": str(CONNECT_SECONDS),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "ControlMaster": "no",
    }
    flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "none", *flags, "-i", str(endpoint.key), "-p", str(endpoint.port)]


def has_rsync() -> bool:
    """True where this host has one."""
    return shutil.which("rsync") is not None


def takes_rsync() -> bool:
    """True where this host can receive by it too: the data key is held to `rrsync`."""
    return has_rsync() and shutil.which("rrsync") is not None


def knows_fsync(run: Runner) -> bool:
    """True where rsync's own help names it."""
    try:
        ended = run(["rsync", "--help"], timeout_seconds=10, environment={"PATH": os.environ.get("PATH", "")})
    except OSError:
        return False
    return "--fsync" in ended.output


def _is_final(ended: Finished) -> bool:
    if ended.code is None or ended.code not in RETRIED_CODES:
        return True
    return any(word in ended.errors for word in (*HOST_KEY_WORDS, *PERMISSION_WORDS, *USER_WORDS))


def _remedy(ended: Finished) -> str:
    if any(word in ended.errors for word in HOST_KEY_WORDS):
        return "The host's key is not the known one. Compare it there before you change known_hosts."
    if any(word in ended.errors for word in PERMISSION_WORDS):
        return "The data key is not installed there: `tandem init-host --role intel` prints the line."
    if any(word in ended.errors for word in USER_WORDS):
        return "The user that runs tandem has no line in /etc/passwd: `tandem doctor` says how to mend it."
    return ""
