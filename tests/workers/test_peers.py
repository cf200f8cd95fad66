"""One more intelligence host is made known to a training host; what it had stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.settings import load_settings, setting_names
from workers.errors import StackError
from workers.host_plan import HostPlan
from workers.peers import add_peer
from workers.provision import provision

FIRST_KEY, SECOND_KEY = "ssh-ed25519 AAAAfirst root@intel", "ssh-ed25519 AAAAsecond root@intel-2"


def plan(directory: Path, **changes: Any) -> HostPlan:
    fields = {
        "roles": ("train",),
        "directory": directory,
        "home": directory / "var",
        "redis_address": "10.0.0.1",
        "python": Path("/opt/tandem/bin/python"),
        "peer": "intel",
        "server_key": FIRST_KEY,
        "uid": 1234,
        "gid": 1234,
    }
    return HostPlan.model_validate({**fields, **changes})


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("workers.provision.os.geteuid", lambda: 1234)
    provision(plan(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def second(directory: Path, **changes: Any) -> HostPlan:
    return plan(directory, **{"peer": "intel-2", "server_key": SECOND_KEY, **changes})


def test_a_second_host_stands_beside_the_first(prepared: Path) -> None:
    before = {path: path.read_bytes() for path in (prepared / "var/secrets").iterdir() if path.is_file()}
    written = add_peer(second(prepared))
    assert load_settings().deploy.all_hosts == ("intel", "intel-2")
    known = prepared / "var/secrets/known_hosts"
    assert known.read_text() == "intel ssh-ed25519 AAAAfirst\nintel-2 ssh-ed25519 AAAAsecond\n"
    assert written == [known, prepared / ".env"]
    assert all(path.read_bytes() == content for path, content in before.items() if path != known)
    assert [path.stat().st_mode & 0o777 for path in written] == [0o644, 0o600]


def test_added_again_a_host_is_known_once_by_its_newest_key(prepared: Path) -> None:
    for key in (SECOND_KEY, "ssh-ed25519 AAAAthird root@intel-2"):
        add_peer(second(prepared, server_key=key))
    add_peer(plan(prepared))
    add_peer(second(prepared, peer="intel-3"))
    assert load_settings().deploy.all_hosts == ("intel", "intel-2", "intel-3")
    lines = (prepared / "var/secrets/known_hosts").read_text().splitlines()
    assert sorted(lines) == [
        "intel ssh-ed25519 AAAAfirst",
        "intel-2 ssh-ed25519 AAAAthird",
        "intel-3 ssh-ed25519 AAAAsecond",
    ]


def test_a_host_that_is_not_prepared_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="names no first intelligence host"):
        add_peer(second(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_all_intelligence_hosts_have_one_port(prepared: Path) -> None:
    before = (prepared / ".env").read_text()
    with pytest.raises(StackError, match="reached at port 22, intel-2 would be at 2200"):
        add_peer(second(prepared, peer_port=2200))
    assert (prepared / ".env").read_text() == before


@pytest.mark.parametrize("changes", [{"roles": ("intel",)}, {"peer": None}, {"server_key": None}])
def test_a_host_is_added_by_name_and_key_on_a_training_host_only(
    prepared: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(StackError, match="one more intelligence host"):
        add_peer(second(prepared, **changes))
