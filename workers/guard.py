"""One user of a GPU at a time on a host, and none before there is memory for it.

There are two locks, which the kernel frees when their holder dies, whatever killed it: a file of the home,
which says who holds it, and a name that other homes on this machine see too. They are for work that comes and
goes: training, evaluation. The inference server stays on its GPU and takes no lock; its memory counts. On a
CPU, which roles share, only memory is looked at.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from pydantic import AwareDatetime

from config.settings import GuardSettings
from registry.records import Record
from registry.store import Clock
from workers.devices import GIGABYTE, CpuDevice, Device, DeviceProcess
from workers.errors import DeviceBusy, DeviceUnreadable
from workers.machine_lock import Taken, bearing

# The inference server, and the worker that keeps its CUDA context between two evaluations.
OUR_COMMANDS = ("inference.server", "workers.app", "celeryd: intelligence@")


class Holder(Record):
    """Who holds a device: stands in its lock file, for people."""

    pid: int
    role: str
    subject: str
    since_at: AwareDatetime


@dataclass(frozen=True)
class Need:
    """What a piece of work wants of a device; with fewer than `least_bytes` it cannot work at all."""

    role: str
    subject: str
    num_bytes: int
    least_bytes: int


@contextmanager
def holding(
    device: Device, *, directory: Path, need: Need, rules: GuardSettings, clock: Clock
) -> Iterator[None]:
    """Hold the device for a piece of work; `DeviceBusy` says why that cannot begin now."""
    with _locked(device, directory=directory, is_needed=_is_locked(device, rules=rules)) as lock:
        refuse_unless_free(device, need=need, rules=rules)
        if lock is not None:
            holder = Holder(pid=os.getpid(), role=need.role, subject=need.subject, since_at=clock())
            _write(lock, text=holder.model_dump_json())
        yield


def refuse_unless_free(device: Device, *, need: Need, rules: GuardSettings) -> None:
    """`DeviceBusy` where a foreign process uses the device, too little is free, or nothing can be said."""
    try:
        use = device.use()
    except DeviceUnreadable as error:
        raise DeviceBusy(str(error)) from None
    foreign = [process for process in use.processes if not _is_ours(process)]
    if foreign and not rules.may_share:
        raise DeviceBusy(f"{device.name} is used by {', '.join(_describe(process) for process in foreign)}.")
    wanted = need.num_bytes + rules.reserve_bytes
    if wanted > use.total_bytes:  # it will have to work in smaller parts
        wanted = need.least_bytes + rules.reserve_bytes
    if use.free_bytes < wanted:
        raise DeviceBusy(
            f"{device.name} has {_gigabytes(use.free_bytes)} of {_gigabytes(use.total_bytes)} free; "
            f"{_gigabytes(wanted)} are needed ({_gigabytes(rules.reserve_bytes)} of them in reserve)."
        )


def _is_locked(device: Device, *, rules: GuardSettings) -> bool:
    return rules.locks_cpu or not isinstance(device, CpuDevice)


@contextmanager
def _locked(device: Device, *, directory: Path, is_needed: bool) -> Iterator[IO[str] | None]:
    if not is_needed:
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    # Not inherited by the trainer: what it leaves on the device is seen as a foreign process.
    with (directory / f"{device.name}.lock").open("a+") as file:
        if not _try_lock(file):
            raise DeviceBusy(f"{device.name} is held: {_words_of(file)}.")
        with _alone_on_machine(device):
            try:
                yield file
            finally:
                _write(file, text="")


@contextmanager
def _alone_on_machine(device: Device) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            if device.identity:
                stack.enter_context(bearing(device.identity))
        except Taken as taken:
            raise DeviceBusy(f"{device.name} is held for another tandem home by {taken}.") from None
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _words_of(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"{holder['role']} of {holder['subject']} by process {holder['pid']}"
    except (ValueError, KeyError, TypeError):
        return "by a process that is just starting"


def _write(file: IO[str], *, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _is_ours(process: DeviceProcess) -> bool:
    """What shares a device by design: its memory counts, its presence does not."""
    try:
        command = " ".join(psutil.Process(process.pid).cmdline())
    except psutil.Error:
        return False
    return any(words in command for words in OUR_COMMANDS)


def _describe(process: DeviceProcess) -> str:
    size = "an unknown amount" if process.num_bytes is None else _gigabytes(process.num_bytes)
    return f"process {process.pid} ({process.name}, {size})"


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / GIGABYTE:.1f} GB"
