"""The doctor says ok only for what it saw."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from config.home import Home
from config.settings import Settings, load_settings
from workers.doctor import (
    clock_finding,
    disk_finding,
    gate_findings,
    link_finding,
    own_versions,
    program_finding,
    redis_findings,
    secret_findings,
    ssh_finding,
    versions_finding,
)
from workers.stack.gate import write_gate_config

GB = 1_000_000_000


class FakeRedis:
    """Answers as Redis does."""

    def __init__(self, *, policy: str = "noeviction", aof: int = 1, user: str = "tandem") -> None:
        self._info = {
            "memory": {"maxmemory_policy": policy},
            "persistence": {"aof_enabled": aof, "aof_last_write_status": "ok"},
        }
        self._user = user
        self.hosts = {"other": "0.1.0"}

    def acl_whoami(self) -> str:
        return self._user

    def info(self, section: str) -> dict[str, Any]:
        return self._info[section]

    def time(self) -> tuple[int, int]:
        return (1000, 500_000)

    def hset(self, key: str, host: str, value: str) -> None:
        self.hosts[host] = value

    def hgetall(self, key: str) -> dict[str, str]:
        return self.hosts


class DeadRedis:
    def acl_whoami(self) -> str:
        raise RedisConnectionError("refused")


def states(client: Any, *, now: float = 1000.5) -> dict[str, str]:
    return {
        finding.check: finding.state for finding in redis_findings(client, host="here", clock=lambda: now)
    }


def test_a_redis_as_it_should_be_is_ok() -> None:
    found = states(FakeRedis())
    for check in ("redis", "redis memory", "redis file", "redis user", "clock"):
        assert found[check] == "ok"


@pytest.mark.parametrize(
    ("client", "check", "state"),
    [
        (FakeRedis(policy="allkeys-lru"), "redis memory", "failed"),
        (FakeRedis(aof=0), "redis file", "failed"),
        (FakeRedis(user="default"), "redis user", "warning"),
    ],
)
def test_a_redis_that_would_lose_messages_is_not(client: FakeRedis, check: str, state: str) -> None:
    assert states(client)[check] == state


def test_a_redis_that_does_not_answer_leaves_the_rest_unknown() -> None:
    found = states(DeadRedis())
    assert found.pop("redis") == "failed"
    assert set(found.values()) == {"unknown"}


@pytest.mark.parametrize(("seconds", "state"), [(0.5, "ok"), (-5.0, "warning"), (3600.0, "failed")])
def test_clocks_that_differ_are_named_by_how_much(seconds: float, state: str) -> None:
    finding = clock_finding(seconds)
    assert finding.state == state
    assert f"{seconds:+.1f} s" in finding.found


def test_versions_are_equal_different_or_unknown() -> None:
    assert versions_finding({"a": "0.1.0"}).state == "unknown"
    assert versions_finding({"a": "0.1.0", "b": "0.1.0"}).state == "ok"
    assert versions_finding({"a": "0.1.0", "b": "0.2.0"}).state == "failed"


@pytest.mark.parametrize(("free", "state"), [(100 * GB, "ok"), (20 * GB, "warning"), (GB, "failed")])
def test_disk_space_is_judged_by_what_is_free(free: int, state: str) -> None:
    assert disk_finding(SimpleNamespace(free=free, total=500 * GB)).state == state


def test_a_secret_that_others_can_read_fails_with_the_command_that_mends_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    assert [finding.state for finding in secret_findings(home)] == ["unknown"]
    home.secret("redis_password")
    assert [finding.state for finding in secret_findings(home)] == ["ok"]
    (home.secrets / "redis_password").chmod(0o644)
    (finding,) = secret_findings(home)
    assert finding.state == "failed"
    assert finding.remedy == f"chmod 600 {home.secrets / 'redis_password'}"


def test_a_missing_program_is_a_warning() -> None:
    assert program_finding("rsync", which=lambda _name: None).state == "warning"
    assert program_finding("rsync", which=lambda name: f"/usr/bin/{name}").state == "ok"


def test_ssh_is_of_no_use_to_a_user_whom_nobody_knows() -> None:
    def know_nobody(user: int) -> object:
        raise KeyError(user)

    assert ssh_finding(which=lambda name: f"/usr/bin/{name}").state == "ok"
    assert ssh_finding(which=lambda _name: None).state == "warning"
    unknown = ssh_finding(which=lambda name: f"/usr/bin/{name}", look_up=know_nobody)
    assert unknown.state == "failed"
    assert "run/passwd" in unknown.remedy


def test_a_plain_link_to_another_machine_is_a_warning() -> None:
    assert link_finding("redis://:hush@127.0.0.1:6390/0").state == "ok"
    assert link_finding("rediss://tandem:hush@10.0.0.1:6390/0").state == "ok"
    assert link_finding("redis://tandem:hush@10.0.0.1:6390/0").state == "warning"
    assert "hush" not in link_finding("redis://tandem:hush@10.0.0.1:6390/0").found


def test_what_makes_the_numbers_is_named_with_its_version() -> None:
    said = own_versions()
    for name in ("tandem", "torch", "transformers", "python"):
        assert f"{name} " in said
    assert "unknown" not in said
    assert "+" not in said


def test_a_gate_is_compared_with_the_settings_of_its_host(settings: Settings) -> None:
    assert list(gate_findings(settings)) == []
    path = write_gate_config(settings)
    assert [finding.state for finding in gate_findings(settings)] == ["ok"]
    (finding,) = gate_findings(load_settings(home=settings.home, server={"port": 9000}))
    assert finding.state == "failed"
    assert "server_url http://127.0.0.1:8765, not http://127.0.0.1:9000" in finding.found
    path.write_text("{}")
    assert [finding.state for finding in gate_findings(settings)] == ["failed"]
