"""docker-compose.yml, read and not run: every service is confined, and has the time to stop that it needs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import TrainingSettings
from workers.child import KILL_WAIT_SECONDS
from workers.runner import POLL_SECONDS
from workers.stack.parts import STOP_SECONDS

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined_watched_and_stopped_in_time(name: str) -> None:
    service = SERVICES[name]
    assert re.match(r"\$\{STACK_UID:\?", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"]
    assert service["healthcheck"]["test"]
    assert service["network_mode"] == "host"


def test_the_database_listens_at_one_address_and_takes_its_password_from_a_file() -> None:
    service = SERVICES["postgres"]
    assert service["profiles"] == ["postgres"]
    assert service["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/registry_password"
    assert "POSTGRES_PASSWORD" not in service["environment"]
    # initdb trusts whoever comes from this machine unless told otherwise, and the network is the host's.
    assert "--auth-host=scram-sha-256" in service["environment"]["POSTGRES_INITDB_ARGS"]
    assert "listen_addresses=${STACK_POSTGRES_ADDRESS:-127.0.0.1}" in service["command"]


def test_whoever_the_containers_run_as_is_named_to_them() -> None:
    named = {name for name, one in SERVICES.items() if any("/etc/passwd:ro" in at for at in one["volumes"])}
    assert named == set(SERVICES) - {"redis"}


def test_a_running_job_has_time_to_save_before_its_container_is_killed() -> None:
    grace = SERVICES["train"]["stop_grace_period"]
    seconds = float(re.fullmatch(r"(\d+)s", grace)[1])  # type: ignore[index]
    # The runner looks now and then, waits so long for the trainer to save, kills it, and writes the job back.
    needed = POLL_SECONDS + TrainingSettings().stop_grace_seconds + KILL_WAIT_SECONDS + STOP_SECONDS
    assert needed < seconds


@pytest.mark.integration
def test_both_files_are_linted_and_read_by_every_compose_that_is_here() -> None:
    ended = subprocess.run(
        [ROOT / "scripts" / "lint-compose.sh"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for compose in ("docker compose", "docker-compose"):
        has_said = re.search(rf"^{compose} (reads both files|is not here)", ended.stdout, re.MULTILINE)
        assert has_said, ended.stdout


def test_what_is_started_alone_is_built_alone() -> None:
    for name in ("control", "train", "intelligence"):
        assert SERVICES[name]["build"], name
