"""The gate's file: made by `tandem init-host`, true again whenever the host's parts start."""

import pytest

from config.settings import Settings, load_settings
from deploy.config import GateConfig
from workers.stack.gate import door_seconds, gate_config_path, refresh_gate_config, write_gate_config


def test_the_gate_is_told_this_homes_directories_and_no_secret(settings: Settings) -> None:
    path = write_gate_config(settings)
    config = GateConfig.model_validate_json(path.read_bytes())
    assert config.releases_dir == settings.paths.releases
    assert config.incoming_dir.parent == config.releases_dir.parent == config.cache_dir.parent
    assert config.server_url == settings.server_url
    assert config.admin_key_file.exists()
    assert config.admin_key_file.read_text().strip() not in path.read_text()


def changed(settings: Settings) -> Settings:
    return load_settings(home=settings.home, server={"port": 9000}, deploy={"cache_bytes": 7})


def test_a_gate_that_is_there_learns_what_the_settings_say_since(settings: Settings) -> None:
    path = write_gate_config(settings)
    refresh_gate_config(changed(settings))
    told = GateConfig.model_validate_json(path.read_bytes())
    assert (told.server_url, told.cache_bytes) == ("http://127.0.0.1:9000", 7)


def test_a_file_that_says_so_already_is_not_written_again(settings: Settings) -> None:
    before = write_gate_config(settings).stat().st_ino
    refresh_gate_config(settings)
    assert gate_config_path(settings).stat().st_ino == before


@pytest.mark.parametrize("content", ["", "{}", "none"])
def test_a_file_that_cannot_be_read_is_written_anew(settings: Settings, content: str) -> None:
    gate_config_path(settings).write_text(content)
    refresh_gate_config(settings)
    assert GateConfig.model_validate_json(gate_config_path(settings).read_bytes())


def test_a_host_without_a_gate_gets_none_by_starting(settings: Settings) -> None:
    refresh_gate_config(settings)
    assert not gate_config_path(settings).exists()


def test_who_deploys_waits_for_two_starts_of_a_vllm(settings: Settings) -> None:
    assert door_seconds(settings) == settings.deployment.timeout_seconds
    server = {"engine": "vllm", "max_pause_seconds": 60, "vllm": {"start_seconds": 600}}
    slow = load_settings(home=settings.home, server=server)
    assert door_seconds(slow) == 1260
    told = GateConfig.model_validate_json(write_gate_config(slow).read_bytes())
    assert told.timeout_seconds == 1260
    patient = load_settings(home=settings.home, server=server, deployment={"timeout_seconds": 5000})
    assert door_seconds(patient) == 5000
