"""The doctor asks the host behind ssh, and says ok only for what it heard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from deploy.errors import HostRefused, HostUnreachable
from deploy.remote import Candidates, GateDoor, RemoteTarget
from deploy.transfer import Endpoint
from registry.testing import START
from tests.deploy.far import FarHost
from workers.doctor_peers import peer_findings
from workers.remotes import RemoteHost


@pytest.fixture
def two_hosts(settings: Settings) -> Settings:
    return load_settings(home=settings.home, deploy={"host": "far"})


@pytest.fixture
def far(tmp_path: Path) -> FarHost:
    return FarHost(tmp_path / "far")


def states(
    settings: Settings, far: FarHost, *, version: str = "1", now_seconds: float = 0.0, refuses: bool = False
) -> dict[str, str]:
    @contextmanager
    def open_host(_settings: Settings, *, host: str) -> Iterator[RemoteHost]:
        if host == "dead":
            raise HostUnreachable("tandem@dead:22 cannot be reached: no route.")
        gateway = far.gateway()
        target = RemoteTarget(gateway, carrier=far.carrier)
        yield RemoteHost(
            gateway, target, GateDoor(gateway), candidates=Candidates(gateway, carrier=far.carrier)
        )

    def admit(there: Endpoint) -> None:
        if refuses:
            raise HostRefused(f"{there} refuses the key.")

    now = (START + timedelta(seconds=now_seconds)).timestamp()
    found = peer_findings(settings, version=version, clock=lambda: now, open_host=open_host, admit=admit)
    return {finding.check: finding.state for finding in found}


def test_on_one_machine_there_is_nobody_to_ask(settings: Settings, far: FarHost) -> None:
    assert states(settings, far) == {}


def test_a_host_as_it_should_be_is_ok(two_hosts: Settings, far: FarHost) -> None:
    found = states(two_hosts, far)
    assert [found[f"far {what}"] for what in ("gate", "clock", "version", "data key")] == ["ok"] * 4
    assert {"far disk", "far rsync"} <= found.keys()


def test_another_version_a_wrong_clock_and_a_refused_key_fail(two_hosts: Settings, far: FarHost) -> None:
    assert states(two_hosts, far, version="2")["far version"] == "failed"
    assert states(two_hosts, far, now_seconds=3600)["far clock"] == "failed"
    assert states(two_hosts, far, refuses=True)["far data key"] == "failed"


def test_of_several_hosts_each_must_go_by_the_name_it_is_known_by(settings: Settings, far: FarHost) -> None:
    several = load_settings(home=settings.home, deploy={"host": "far", "candidate_hosts": ("away",)})
    found = states(several, far)
    assert (found["far name"], found["away name"]) == ("ok", "warning")


def test_a_host_that_does_not_answer_leaves_the_rest_unknown(settings: Settings, far: FarHost) -> None:
    dead = load_settings(home=settings.home, deploy={"host": "dead"})
    found = states(dead, far)
    assert found.pop("dead gate") == "failed"
    assert found.pop("dead data key") == "ok"
    assert set(found.values()) == {"unknown"}
