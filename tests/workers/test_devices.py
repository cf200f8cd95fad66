"""The CPU stand-in for real, and the NVIDIA driver by a module of the same shape: no GPU is needed."""

from types import SimpleNamespace

import pytest

from registry.testing import START
from workers.devices import CpuDevice, Device, DeviceUse, NvmlDevice, open_device, open_devices, read_device
from workers.errors import DeviceUnreadable
from workers.testing import FakeDevice


class NvmlError(Exception):
    """As the driver's library raises it."""


class NoLibrary(NvmlError):
    """There is no driver on this machine."""


class NotLoaded(NvmlError):
    """There is a driver, and no card that it drives."""


class FakeNvml:
    """`pynvml` with one GPU of 24 GB on which process 1 has 9 GB."""

    NVMLError = NvmlError
    NVMLError_LibraryNotFound = NoLibrary
    NVMLError_DriverNotLoaded = NotLoaded
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *, num_gpus: int = 1, problem: str = "") -> None:
        self.num_gpus, self.problem, self.num_open = num_gpus, problem, 0

    def nvmlInit(self) -> None:
        problems = {"no driver": NoLibrary, "not loaded": NotLoaded, "mismatch": NvmlError}
        if self.problem in problems:
            raise problems[self.problem](self.problem)
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:
        if self.problem == "lost":
            raise NvmlError("GPU is lost")
        return self.num_gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= self.num_gpus:
            raise NvmlError("Invalid Argument")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        if self.problem == "lost":
            raise NvmlError("GPU is lost")
        return f"GPU-{handle}-8c1f"

    def nvmlDeviceGetMemoryInfo(self, _handle: int) -> SimpleNamespace:
        if self.problem == "lost":
            raise NvmlError("GPU is lost")
        return SimpleNamespace(total=24 * 10**9, free=15 * 10**9, used=9 * 10**9)

    def nvmlDeviceGetUtilizationRates(self, _handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=87, memory=30)

    def nvmlDeviceGetTemperature(self, _handle: int, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        if self.problem == "no sensor":
            raise NvmlError("Not Supported")
        return 61

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=1, usedGpuMemory=9 * 10**9)]


@pytest.mark.parametrize(
    "device", [CpuDevice(), NvmlDevice(0, nvml=FakeNvml()), FakeDevice()], ids=["cpu", "nvml", "fake"]
)
def test_a_device_has_a_name_and_free_memory_within_its_total(device: Device) -> None:
    use = device.use()
    assert device.name
    assert isinstance(use, DeviceUse)
    assert 0 < use.free_bytes <= use.total_bytes


def test_a_gpu_tells_its_memory_and_who_uses_it_and_is_closed_again() -> None:
    nvml = FakeNvml()
    use = NvmlDevice(0, nvml=nvml).use()
    assert (use.total_bytes, use.free_bytes) == (24 * 10**9, 15 * 10**9)
    assert [(found.pid, found.num_bytes) for found in use.processes] == [(1, 9 * 10**9)]
    assert nvml.num_open == 0


@pytest.mark.parametrize(("index", "problem"), [(0, "no driver"), (0, "lost"), (3, "")])
def test_a_gpu_of_which_the_driver_says_nothing_is_unreadable(index: int, problem: str) -> None:
    with pytest.raises(DeviceUnreadable, match=f"GPU {index} cannot be read.*nvidia-smi"):
        NvmlDevice(index, nvml=FakeNvml(problem=problem)).use()


@pytest.mark.parametrize(
    ("wish", "nvml", "name"),
    [
        ("cpu", FakeNvml(), "cpu"),
        ("cuda", FakeNvml(), "gpu-0"),
        ("cuda:2", FakeNvml(), "gpu-2"),
        ("cuda", FakeNvml(problem="no driver"), "gpu-0"),
        ("auto", FakeNvml(), "gpu-0"),
        ("auto", FakeNvml(num_gpus=0), "cpu"),
        ("auto", FakeNvml(problem="no driver"), "cpu"),
        ("auto", FakeNvml(problem="not loaded"), "cpu"),
        # What the driver cannot tell is no reason to believe that there is no GPU.
        ("auto", FakeNvml(problem="mismatch"), "gpu-0"),
        ("auto", FakeNvml(problem="lost"), "gpu-0"),
    ],
)
def test_the_wish_chooses_the_device(wish: str, nvml: FakeNvml, name: str) -> None:
    assert open_device(wish, nvml=nvml).name == name


@pytest.mark.parametrize(
    ("wish", "count", "nvml", "names"),
    [
        ("cuda", 1, FakeNvml(num_gpus=2), ["gpu-0"]),
        ("cuda", 2, FakeNvml(num_gpus=2), ["gpu-0", "gpu-1"]),
        ("auto", 2, FakeNvml(num_gpus=2), ["gpu-0", "gpu-1"]),
        ("auto", 2, FakeNvml(num_gpus=0), ["cpu"]),
        ("cpu", 2, FakeNvml(num_gpus=2), ["cpu"]),
        ("cuda:1", 2, FakeNvml(num_gpus=2), ["gpu-1"]),
    ],
)
def test_processes_that_share_a_job_take_a_card_each(
    wish: str, count: int, nvml: FakeNvml, names: list[str]
) -> None:
    assert [device.name for device in open_devices(wish, count=count, nvml=nvml)] == names


def test_a_gpu_is_known_by_its_own_number_and_else_by_its_index() -> None:
    driver = FakeNvml()
    assert NvmlDevice(0, nvml=driver).identity == "GPU-0-8c1f"
    assert driver.num_open == 0
    assert NvmlDevice(0, nvml=FakeNvml(problem="lost")).identity == "gpu-0"
    assert CpuDevice().identity == ""


def test_a_gpu_is_read_with_memory_utilisation_and_temperature() -> None:
    nvml = FakeNvml()
    found = read_device(NvmlDevice(0, nvml=nvml), trainer_memory_bytes=7, now=START)
    assert (found.memory_used_bytes, found.memory_total_bytes) == (9 * 10**9, 24 * 10**9)
    assert (found.utilisation, found.temperature_celsius, found.trainer_memory_bytes) == (0.87, 61.0, 7)
    assert found.unknown_because == ""
    assert nvml.num_open == 0


@pytest.mark.parametrize(
    ("problem", "known", "reason"),
    [
        ("no driver", {"utilisation": None, "memory_used_bytes": None}, "the driver does not answer"),
        (
            "no sensor",
            {"utilisation": 0.87, "temperature_celsius": None},
            "temperature_celsius: Not Supported",
        ),
    ],
)
def test_what_a_gpu_does_not_tell_is_none_with_the_reason(
    problem: str, known: dict[str, float | None], reason: str
) -> None:
    found = read_device(NvmlDevice(0, nvml=FakeNvml(problem=problem)), trainer_memory_bytes=7, now=START)
    assert {name: getattr(found, name) for name in known} == known
    assert reason in found.unknown_because


def test_without_a_gpu_the_hosts_memory_stands_in_and_the_rest_says_why_it_is_unknown() -> None:
    found = read_device(CpuDevice(), trainer_memory_bytes=None, now=START)
    assert found.memory_total_bytes is not None
    assert found.memory_total_bytes > (found.memory_used_bytes or 0) > 0
    assert (found.utilisation, found.temperature_celsius) == (None, None)
    assert "no GPU trains here" in found.unknown_because
    assert "not reported its memory yet" in found.unknown_because
