"""Stands for NVIDIA's library in the workers of the integration stack: one GPU, as a file describes it.

While there is no file the driver is not loaded, and the stack works on its CPU.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    """As the library raises it."""


class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801 - the name in the library
    """There is no driver."""


class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801 - the name in the library
    """There is no card that it drives."""


def nvmlInit() -> None:
    if not _file().exists():
        raise NVMLError_DriverNotLoaded("no card")


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetUUID(_handle: int) -> str:
    return str(_gpu()["uuid"])


def nvmlDeviceGetMemoryInfo(_handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=_gpu()["total"], free=_gpu()["free"])


def nvmlDeviceGetUtilizationRates(_handle: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=_gpu().get("utilisation", 0))


def nvmlDeviceGetTemperature(_handle: int, _sensor: int) -> int:
    return int(_gpu().get("celsius", 40))


def nvmlDeviceGetComputeRunningProcesses(_handle: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in _gpu()["processes"]]


def _gpu() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_file().read_text())
    except OSError as error:
        raise NVMLError(str(error)) from None
    return found


def _file() -> Path:
    return Path(os.environ["STAND_IN_GPU"])
