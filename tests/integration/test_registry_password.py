"""A real PostgreSQL behind a password that stands in one file and nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from config.settings import load_settings, setting_names
from registry.errors import RegistryUnavailable
from registry.schema import check_schema, upgrade
from registry.store import Registry
from registry.testing_postgresql import postgresql_server
from workers.host_plan import HostPlan
from workers.provision import provision

PASSWORD = "a/b@c:d %25"

pytestmark = pytest.mark.integration


def prepare(directory: Path, *, url: str) -> None:
    provision(
        HostPlan(
            roles=("train",),
            directory=directory,
            home=directory / "var",
            redis_address="127.0.0.1",
            registry_url=url,
            registry_password=PASSWORD,
            python=Path(sys.executable),
            uid=os.getuid() or 1,
            gid=os.getgid() or 1,
        )
    )


def test_the_registry_opens_by_the_password_that_init_host_put_away_and_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with postgresql_server(is_durable=False, password=PASSWORD) as url:
        prepare(tmp_path, url=url)
        assert PASSWORD not in (tmp_path / ".env").read_text()
        registry = Registry(load_settings().database_url)
        upgrade(registry)
        check_schema(registry)
        registry.engine.dispose()
        (tmp_path / "var/secrets/registry_password").write_text("hunter2\n")
        with pytest.raises(RegistryUnavailable, match="password authentication failed") as caught:
            check_schema(Registry(load_settings().database_url))
        assert "hunter2" not in str(caught.value)
