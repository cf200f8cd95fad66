from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.errors import ServerConfigError
from inference.server.config import Keys, ServerConfig, load_config, load_keys

KEY = "k" * 32


def test_a_configuration_file_is_read_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text(json.dumps({"releases_dir": "/r", "admin_key_file": "/k"}))
    config = load_config(path)
    assert (config.host, config.port, config.releases_dir) == ("127.0.0.1", 8765, Path("/r"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"admin_key_file": "/k"}', "releases_dir: Field required"),
        ('{"releases_dir": "/r", "admin_key_file": "/k", "prot": 1}', "prot: Extra inputs"),
        ('{"releases_dir": "/r", "admin_key_file": "/k", "port": 99999}', "port: Input should be"),
    ],
)
def test_a_wrong_configuration_names_its_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "server.json"
    path.write_text(content)
    with pytest.raises(ServerConfigError, match=message):
        load_config(path)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerConfigError, match=r"none\.json cannot be read: No such file"):
        load_config(tmp_path / "none.json")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "tandem.example"])
def test_a_door_beyond_loopback_needs_a_read_key(config: ServerConfig, host: str) -> None:
    with pytest.raises(ServerConfigError, match="answer whoever reaches it"):
        load_keys(config.changed(host=host))


def test_a_read_key_opens_the_door_beyond_loopback(config_with_keys: ServerConfig) -> None:
    assert load_keys(config_with_keys.changed(host="192.168.1.5")).read is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_read_key(config: ServerConfig, host: str) -> None:
    assert load_keys(config.changed(host=host)).read is None


@pytest.mark.parametrize("content", ["", "short", "two words of which none is a key", "ключ" * 8])
def test_a_file_without_a_usable_key_is_refused(config: ServerConfig, content: str) -> None:
    config.admin_key_file.write_text(content)
    with pytest.raises(ServerConfigError, match="does not hold one key"):
        load_keys(config)


def test_a_missing_key_file_is_named(config: ServerConfig) -> None:
    config.admin_key_file.unlink()
    with pytest.raises(ServerConfigError, match=r"admin_key cannot be read: No such file"):
        load_keys(config)


def test_one_key_for_both_roles_is_refused(config: ServerConfig) -> None:
    with pytest.raises(ServerConfigError, match="are the same"):
        load_keys(config.changed(read_key_file=config.admin_key_file))


def test_keys_are_not_shown() -> None:
    assert KEY not in repr(Keys(admin=KEY, read=KEY + "2"))


def test_the_admin_key_may_read_and_the_read_key_may_not_administer() -> None:
    keys = Keys(admin="a" * 16, read="r" * 16)
    assert [keys.may_read(key) for key in ("a" * 16, "r" * 16, "", "é")] == [True, True, False, False]
    assert [keys.may_administer(key) for key in ("a" * 16, "r" * 16, "")] == [True, False, False]
