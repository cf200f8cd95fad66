"""The supervisor on real small processes: start, restart, stop, refuse."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from config.settings import Settings, load_settings, setting_names
from workers.errors import StackError
from workers.stack import control
from workers.stack.parts import Part
from workers.stack.redis_server import find_redis_server, write_redis_config
from workers.stack.state import ProcessId, StackState, identify, is_alive, read_state, write_state
from workers.stack.supervisor import Supervisor, refuse_taken_port

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print(1, flush=True); time.sleep(600)",
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    found = load_settings(home=tmp_path / "home")
    found.paths.prepare()
    return found


def part(name: str, *command: str, stop_seconds: float = 5.0) -> Part:
    return Part(name, command or SLEEPER, lambda: True, stop_seconds=stop_seconds)


def pid_of(supervisor: Supervisor, name: str) -> int:
    process = supervisor.running[name].process
    assert process is not None
    return process.pid


@pytest.mark.integration
def test_parts_are_started_recorded_and_stopped_without_a_trace(settings: Settings) -> None:
    supervisor = Supervisor([part("one"), part("two")], settings=settings)
    supervisor.claim()
    supervisor.start()
    supervisor.wait_ready()
    pids = [pid_of(supervisor, name) for name in ("one", "two")]
    state = read_state(settings.paths.run)
    assert state is not None
    assert [found.pid for found in state.parts] == pids
    supervisor.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert read_state(settings.paths.run) is None


@pytest.mark.integration
def test_a_part_that_dies_is_started_again(settings: Settings) -> None:
    supervisor = Supervisor([part("one")], settings=settings)
    supervisor.claim()
    supervisor.start()
    supervisor.wait_ready()
    first = pid_of(supervisor, "one")
    psutil.Process(first).send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while supervisor.running["one"].state != "up" or pid_of(supervisor, "one") == first:
        assert time.monotonic() < deadline
        supervisor.tick()
        time.sleep(0.05)
    assert supervisor.running["one"].num_restarts == 1
    supervisor.stop()


@pytest.mark.integration
def test_a_part_that_ignores_the_polite_signal_is_killed_after_its_grace(settings: Settings) -> None:
    supervisor = Supervisor([part("one", *STUBBORN, stop_seconds=0.5)], settings=settings)
    supervisor.claim()
    supervisor.start()
    log = settings.paths.logs / "one.log"
    while not log.read_text():
        time.sleep(0.05)
    pid = pid_of(supervisor, "one")
    supervisor.stop()
    assert not psutil.pid_exists(pid)


@pytest.mark.integration
def test_a_part_that_ends_while_starting_is_named_with_its_last_words(settings: Settings) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('no such model')")
    slow = Part("one", broken, lambda: False)
    supervisor = Supervisor([slow], settings=settings)
    supervisor.claim()
    supervisor.start()
    with pytest.raises(StackError, match=r"one ended while starting \(exit code 1\): no such model"):
        supervisor.wait_ready()
    supervisor.stop()


@pytest.mark.integration
def test_what_a_killed_supervisor_left_is_ended_by_down_and_by_the_next_up(settings: Settings) -> None:
    process = subprocess.Popen(SLEEPER)
    left = identify("one", pid=process.pid)
    assert left is not None
    dead = ProcessId(name="supervisor", pid=2**22 - 1, started=0.0)
    write_state(settings.paths.run, state=StackState(supervisor=dead, parts=(left,)))
    assert control.stop_running(settings) == ["one"]
    process.wait(timeout=5)
    assert not is_alive(left)
    assert control.stop_running(settings) == []


def test_a_process_id_that_was_used_again_is_not_taken_for_ours() -> None:
    own = identify("me", pid=psutil.Process().pid)
    assert own is not None
    assert is_alive(own)
    assert not is_alive(own.changed(started=own.started - 100))


@pytest.mark.integration
def test_a_taken_port_is_refused_with_the_setting_that_changes_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StackError, match=rf"Port {port}, meant for redis.*TANDEM_REDIS__PORT"):
            refuse_taken_port(port, name="redis")


def test_the_packaged_redis_serves_where_path_has_none() -> None:
    assert find_redis_server(which=lambda _name: None).exists()
    assert find_redis_server(which=lambda _name: "/opt/redis-server") == Path("/opt/redis-server")


def test_the_redis_configuration_is_private_and_listens_on_loopback_only(settings: Settings) -> None:
    path = write_redis_config(settings)
    assert path.stat().st_mode & 0o077 == 0
    lines = path.read_text().splitlines()
    assert "bind 127.0.0.1" in lines
    assert "appendonly yes" in lines
    assert f"requirepass {settings.paths.secret('redis_password')}" in lines
