"""The doctor looks where this host's parts were told to listen, and at who comes in by ssh."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from workers.doctor import Finding
from workers.doctor_doors import door_findings, owner_finding
from workers.stack.gate import write_gate_config


def examined(
    settings: Settings, *, open_doors: set[tuple[str, int]], which: Callable[[str], str | None] = str
) -> dict[str, Finding]:
    found = door_findings(settings, listens=lambda host, port: (host, port) in open_doors, which=which)
    return {finding.check: finding for finding in found}


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("10.0.0.2", "10.0.0.2"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1")],
)
def test_the_server_is_looked_for_where_it_was_told_to_listen(
    settings: Settings, host: str, address: str
) -> None:
    told = load_settings(home=settings.home, server={"host": host})
    found = examined(told, open_doors={(address, 8765)})
    assert found["port 8765"].state == "ok"
    assert f"{address}:8765" in found["port 8765"].found
    assert found["port 5555"].state == "unknown"


def test_a_server_elsewhere_than_told_is_not_seen(settings: Settings) -> None:
    told = load_settings(home=settings.home, server={"host": "10.0.0.2"})
    assert examined(told, open_doors={("127.0.0.1", 8765)})["port 8765"].state == "unknown"


def test_nobody_asks_for_sshd_on_a_host_that_no_other_enters(settings: Settings) -> None:
    assert set(examined(settings, open_doors=set())) == {"port 8765", "port 5555"}


def test_a_host_that_others_enter_needs_sshd_and_rrsync(settings: Settings) -> None:
    write_gate_config(settings)
    shut = examined(settings, open_doors=set(), which=lambda _name: None)
    assert (shut["sshd"].state, shut["rrsync"].state) == ("warning", "warning")
    found = examined(settings, open_doors={("127.0.0.1", 22)})
    assert (found["sshd"].state, found["rrsync"].state) == ("ok", "ok")


def test_gate_and_parts_are_one_user(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = write_gate_config(settings)
    assert owner_finding(settings.paths, gate=gate).state == "ok"
    monkeypatch.setattr("workers.doctor_doors.os.geteuid", lambda: os.getuid() + 4321)
    finding = owner_finding(settings.paths, gate=gate)
    assert finding.state == "failed"
    assert "--user NAME" in finding.remedy


def test_an_entry_that_the_gate_wrote_as_another_user_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = write_gate_config(settings)
    entry = settings.paths.cache / ("a" * 64)
    entry.mkdir()
    real = Path.stat

    def owned_by_another(path: Path, **how: bool) -> os.stat_result:
        found = real(path, **how)
        return os.stat_result([*found[:4], found.st_uid + 1, *found[5:]]) if path == entry else found

    monkeypatch.setattr(Path, "stat", owned_by_another)
    finding = owner_finding(settings.paths, gate=gate)
    assert finding.state == "failed"
    assert finding.found.startswith(str(entry))
