import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from config.settings import GuardSettings
from registry.testing import ManualClock
from workers.devices import CpuDevice, Device, DeviceProcess
from workers.errors import DeviceBusy
from workers.guard import Need, holding
from workers.testing import FakeDevice

GB = 10**9
RULES = GuardSettings()
NEED = Need(role="training", subject="job-a", num_bytes=10 * GB, least_bytes=4 * GB)


def hold(directory: Path, device: Device, *, need: Need = NEED, rules: GuardSettings = RULES):  # type: ignore[no-untyped-def]
    return holding(device, directory=directory, need=need, rules=rules, clock=ManualClock())


def test_a_free_device_is_held_and_its_lock_says_by_whom(tmp_path: Path) -> None:
    with hold(tmp_path, FakeDevice()):
        text = (tmp_path / "gpu-0.lock").read_text()
    assert f'"pid":{os.getpid()}' in text
    assert '"role":"training"' in text
    assert (tmp_path / "gpu-0.lock").read_text() == ""


def test_a_second_role_is_told_who_holds_the_device_and_may_begin_afterwards(tmp_path: Path) -> None:
    with hold(tmp_path, FakeDevice()), pytest.raises(DeviceBusy, match="gpu-0 is held: training of job-a by"):
        hold(tmp_path, FakeDevice()).__enter__()
    with hold(tmp_path, FakeDevice()):
        pass


def test_two_devices_are_held_side_by_side(tmp_path: Path) -> None:
    with hold(tmp_path, FakeDevice()), hold(tmp_path, FakeDevice(name="gpu-1")):
        pass


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, signal, sys\n"
        f"file = open({str(tmp_path / 'gpu-0.lock')!r}, 'a+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    with hold(tmp_path, FakeDevice()):
        pass


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (FakeDevice(free_bytes=9 * GB), "gpu-0 has 9.0 GB of 24.0 GB free; 10.5 GB are needed"),
        (
            FakeDevice(processes=(DeviceProcess(pid=1, name="game", num_bytes=2 * GB),)),
            r"gpu-0 is used by process 1 \(game, 2.0 GB\)",
        ),
        (FakeDevice(problem="the driver is gone"), "the driver is gone"),
    ],
)
def test_what_is_in_the_way_is_named_with_its_numbers(tmp_path: Path, device: Device, words: str) -> None:
    with pytest.raises(DeviceBusy, match=words):
        hold(tmp_path, device).__enter__()


def test_a_foreign_process_may_be_shared_with_if_that_is_set(tmp_path: Path) -> None:
    device = FakeDevice(processes=(DeviceProcess(pid=1, name="game", num_bytes=None),))
    with hold(tmp_path, device, rules=GuardSettings(may_share=True)):
        pass


def test_our_own_server_on_the_device_is_no_stranger(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()", "inference.server"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin
    assert server.stdout
    server.stdout.readline()
    device = FakeDevice(processes=(DeviceProcess(pid=server.pid, name="python", num_bytes=GB),))
    with hold(tmp_path, device):
        pass
    server.communicate(timeout=30)


def test_a_job_larger_than_the_whole_device_begins_with_what_its_smallest_parts_need(tmp_path: Path) -> None:
    huge = Need(role="training", subject="job-a", num_bytes=100 * GB, least_bytes=4 * GB)
    with hold(tmp_path, FakeDevice(), need=huge):
        pass
    with pytest.raises(DeviceBusy, match="4.5 GB are needed"):
        hold(tmp_path, FakeDevice(free_bytes=3 * GB), need=huge).__enter__()


def test_roles_share_a_cpu_unless_that_is_forbidden(tmp_path: Path) -> None:
    small = Need(role="training", subject="job-a", num_bytes=1, least_bytes=1)
    rules = GuardSettings(reserve_bytes=0)
    with (
        hold(tmp_path, CpuDevice(), need=small, rules=rules),
        hold(tmp_path, CpuDevice(), need=small, rules=rules),
    ):
        pass
    strict = GuardSettings(reserve_bytes=0, locks_cpu=True)
    with (
        hold(tmp_path, CpuDevice(), need=small, rules=strict),
        pytest.raises(DeviceBusy, match="cpu is held"),
    ):
        hold(tmp_path, CpuDevice(), need=small, rules=strict).__enter__()


@pytest.mark.integration
def test_two_homes_do_not_hold_one_gpu_at_once_though_each_knows_it_by_another_index(tmp_path: Path) -> None:
    uuid = f"GPU-{uuid4()}"
    one, other = FakeDevice(identity=uuid), FakeDevice(name="gpu-1", identity=uuid)
    words = f"gpu-1 is held for another tandem home by process {os.getpid()}"
    with hold(tmp_path / "one", one), pytest.raises(DeviceBusy, match=words):
        hold(tmp_path / "other", other).__enter__()
    with hold(tmp_path / "other", other):
        pass


@pytest.mark.integration
def test_a_holder_of_another_home_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    uuid = f"GPU-{uuid4()}"
    code = (
        "import sys, time\nfrom workers.machine_lock import bearing\n"
        f"with bearing({uuid!r}):\n    print(1, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(DeviceBusy, match=f"by process {holder.pid}"):
            hold(tmp_path, FakeDevice(identity=uuid)).__enter__()
        holder.kill()
        holder.wait()
        with hold(tmp_path, FakeDevice(identity=uuid)):
            pass
