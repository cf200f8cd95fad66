"""What a GPU, or the CPU in its place, has free at this moment, and who uses it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import psutil
import pynvml

from registry.progress import DeviceReading
from workers.errors import DeviceUnreadable

GIGABYTE = 1e9


@dataclass(frozen=True)
class DeviceProcess:
    """A process that has memory on a device. `num_bytes` is None where the driver does not say."""

    pid: int
    name: str
    num_bytes: int | None


@dataclass(frozen=True)
class DeviceUse:
    """Memory of a device and the processes on it, at one moment."""

    total_bytes: int
    free_bytes: int
    processes: tuple[DeviceProcess, ...] = ()


@dataclass(frozen=True)
class DeviceLoad:
    """How hard a device works, as a share of time, and how warm it is; None with the reason."""

    utilisation: float | None = None
    temperature_celsius: float | None = None
    unknown_because: str = ""


class Device(Protocol):
    """A thing that models run on: which it is, to lock it; how it is used, to judge it; how it does."""

    @property
    def name(self) -> str:
        """The same for every process of a home: `cpu`, `gpu-0`."""

    @property
    def identity(self) -> str:
        """The same for every process of this machine, in containers too; empty for what homes share."""

    def use(self) -> DeviceUse:
        """At this moment; `DeviceUnreadable` where nothing can be said."""

    def load(self) -> DeviceLoad:
        """At this moment. Never raises: what cannot be read is None."""


class CpuDevice:
    """The stand-in: main memory. Who else uses it is no concern of ours."""

    name = "cpu"
    identity = ""

    def use(self) -> DeviceUse:
        """What could be used without swapping."""
        memory = psutil.virtual_memory()
        return DeviceUse(total_bytes=memory.total, free_bytes=memory.available)

    def load(self) -> DeviceLoad:
        """Nothing: a host's processors do much else beside."""
        return DeviceLoad(unknown_because="no GPU trains here: utilisation and temperature are a GPU's")


class NvmlDevice:
    """An NVIDIA GPU by its index."""

    def __init__(self, index: int, *, nvml: ModuleType | Any = pynvml) -> None:
        self._index = index
        self._nvml = nvml

    @property
    def name(self) -> str:
        """`gpu-0`."""
        return f"gpu-{self._index}"

    @property
    def identity(self) -> str:
        """The card's own number: a container may know it by another index. The index where it has none."""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            try:
                uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(self._index))
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError:
            return self.name
        return uuid.decode() if isinstance(uuid, bytes) else str(uuid)

    def use(self) -> DeviceUse:
        """By the driver."""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            raise DeviceUnreadable(
                f"GPU {self._index} cannot be read: {error}.", remedy="See whether `nvidia-smi` answers."
            ) from None
        return DeviceUse(
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            processes=tuple(
                DeviceProcess(pid=found.pid, name=_name_of(found.pid), num_bytes=found.usedGpuMemory)
                for found in running
            ),
        )

    def load(self) -> DeviceLoad:
        """By the driver, each by itself: some cards tell one and not the other."""
        nvml, said, missing = self._nvml, {}, []
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return DeviceLoad(unknown_because=f"the driver does not answer: {error}")
        try:
            for name, read in (
                ("utilisation", self._utilisation),
                ("temperature_celsius", self._temperature),
            ):
                try:
                    said[name] = read()
                except nvml.NVMLError as error:
                    missing.append(f"{name}: {error}")
        finally:
            nvml.nvmlShutdown()
        return DeviceLoad(**said, unknown_because="; ".join(missing))

    def _utilisation(self) -> float:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
        return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100

    def _temperature(self) -> float:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
        return float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))


def read_device(device: Device, *, trainer_memory_bytes: int | None, now: datetime) -> DeviceReading:
    """What a status says of the device that trains; what cannot be had is None, with the reason."""
    load = device.load()
    reasons = [load.unknown_because] if load.unknown_because else []
    used = total = None
    try:
        use = device.use()
        used, total = use.total_bytes - use.free_bytes, use.total_bytes
    except DeviceUnreadable as error:
        reasons.append(error.message)
    if trainer_memory_bytes is None:
        reasons.append("the trainer has not reported its memory yet")
    return DeviceReading(
        name=device.name,
        memory_used_bytes=used,
        memory_total_bytes=total,
        utilisation=load.utilisation,
        temperature_celsius=load.temperature_celsius,
        trainer_memory_bytes=trainer_memory_bytes,
        unknown_because="; ".join(reasons),
        read_at=now,
    )


def open_device(wish: str, *, nvml: ModuleType | Any = pynvml) -> Device:
    """The device that `cpu`, `cuda`, `cuda:1` or `auto` means: the first GPU, if the driver knows one."""
    index = re.search(r":(\d+)$", wish)
    if wish.startswith("cuda"):
        return NvmlDevice(int(index[1]) if index else 0, nvml=nvml)
    if wish == "auto" and _may_have_gpu(nvml):
        return NvmlDevice(0, nvml=nvml)
    return CpuDevice()


def open_devices(wish: str, *, count: int, nvml: ModuleType | Any = pynvml) -> tuple[Device, ...]:
    """What `count` processes that share a job train on: as many cards, from the first on, or one CPU."""
    first = open_device(wish, nvml=nvml)
    # Several processes on a card that is named by its number are what the trainer refuses.
    if isinstance(first, CpuDevice) or count == 1 or ":" in wish:
        return (first,)
    return tuple(NvmlDevice(index, nvml=nvml) for index in range(count))


def _may_have_gpu(nvml: ModuleType | Any) -> bool:
    """False only where there is no driver or it knows no GPU; what cannot be told blocks when it is read."""
    if not _has_library(nvml):
        return False
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return False
    except nvml.NVMLError:
        return True
    try:
        return bool(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return True
    finally:
        nvml.nvmlShutdown()


@lru_cache(maxsize=8)
def _has_library(nvml: ModuleType | Any) -> bool:
    """Looked for once a process: each search in vain costs as much as several questions to the registry."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return False
    except nvml.NVMLError:
        return True
    nvml.nvmlShutdown()
    return True


def _name_of(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "unknown"
