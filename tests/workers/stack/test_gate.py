from config.settings import Settings
from deploy.config import GateConfig
from workers.stack.gate import write_gate_config


def test_the_gate_is_told_this_homes_directories_and_no_secret(settings: Settings) -> None:
    path = write_gate_config(settings)
    config = GateConfig.model_validate_json(path.read_bytes())
    assert config.releases_dir == settings.paths.releases
    assert config.incoming_dir.parent == config.releases_dir.parent == config.cache_dir.parent
    assert config.server_url == settings.server_url
    assert config.admin_key_file.exists()
    assert config.admin_key_file.read_text().strip() not in path.read_text()
