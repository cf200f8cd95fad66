"""A host is prepared once, with the right modes, and never over what is there."""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from cryptography.x509 import SubjectAlternativeName, load_pem_x509_certificate

from config.errors import SettingsError
from config.settings import load_settings, setting_names
from workers import signing
from workers.errors import StackError
from workers.host_environment import environment_text
from workers.host_plan import HostPlan, next_command
from workers.provision import KEYS, known_hosts_line, provision

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGh0 root@intel"


def plan(directory: Path, **changes: Any) -> HostPlan:
    fields = {
        "roles": ("train",),
        "directory": directory,
        "home": directory / "var",
        "redis_address": "10.0.0.1",
        "python": Path("/opt/tandem/bin/python"),
        "uid": 1234,
        "gid": 1234,
    }
    return HostPlan.model_validate({**fields, **changes})


@pytest.fixture(autouse=True)
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.provision.os.geteuid", lambda: 1234)


def test_everything_secret_is_for_its_owner_only(tmp_path: Path) -> None:
    provision(plan(tmp_path, peer="intel", server_key=HOST_KEY))
    secrets = tmp_path / "var" / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    for path in (*secrets.iterdir(), tmp_path / ".env"):
        is_public = path.suffix == ".pub" or path.name == "known_hosts"
        assert path.stat().st_mode & 0o777 == (0o644 if is_public else 0o600), path


def test_the_training_host_is_told_where_releases_go(tmp_path: Path) -> None:
    told = environment_text(plan(tmp_path, peer="intel", peer_port=2200)).splitlines()
    assert "TANDEM_DEPLOY__HOST=intel" in told
    assert "TANDEM_DEPLOY__PORT=2200" in told
    assert "TANDEM_DEPLOY" not in environment_text(plan(tmp_path))


def test_the_intelligence_host_lets_two_keys_in_each_for_one_purpose(tmp_path: Path) -> None:
    training = tmp_path / "training"
    provision(plan(training, peer="intel"))
    data, command = ((training / "var/secrets" / f"{name}.pub").read_text().strip() for name in KEYS)
    provision(plan(tmp_path, roles=("intel",), data_public_key=data, command_public_key=command))
    home = tmp_path / "var"
    receive, gate = (home / "secrets/authorized_keys").read_text().splitlines()
    assert receive == f'command="rrsync -wo {home}/models/incoming",restrict {data}'
    assert gate == f'command="/opt/tandem/bin/python -m deploy.gate {home}/run/gate.json",restrict {command}'
    assert json.loads((home / "run/gate.json").read_text())["releases_dir"] == f"{home}/models/releases"


def test_without_rsync_the_data_key_gets_sftp(tmp_path: Path) -> None:
    training = tmp_path / "training"
    provision(plan(training, peer="intel"))
    data, command = ((training / "var/secrets" / f"{name}.pub").read_text().strip() for name in KEYS)
    provision(
        plan(tmp_path, roles=("intel",), data_public_key=data, command_public_key=command, has_rsync=False)
    )
    receive, _ = (tmp_path / "var/secrets/authorized_keys").read_text().splitlines()
    assert receive == f'command="internal-sftp",restrict {data}'


def test_the_access_rules_bear_the_password_as_a_hash_only(tmp_path: Path) -> None:
    provision(plan(tmp_path))
    password = (tmp_path / "var/secrets/redis_password").read_text().strip()
    rules = (tmp_path / "var/secrets/redis.acl").read_text()
    assert password not in rules + (tmp_path / ".env").read_text()
    assert f"user tandem on #{hashlib.sha256(password.encode()).hexdigest()}" in rules
    assert rules.startswith("user default off\n")


def test_tandem_itself_reads_the_environment_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    provision(plan(tmp_path, redis_port=7000))
    monkeypatch.chdir(tmp_path)
    password = (tmp_path / "var/secrets/redis_password").read_text().strip()
    assert load_settings().redis_url == f"redis://tandem:{password}@10.0.0.1:7000/0"
    assert load_settings().home == tmp_path / "var"


def test_a_container_is_told_as_whom_it_runs(tmp_path: Path) -> None:
    provision(plan(tmp_path, uid=4321, gid=1234))
    passwd = tmp_path / "var/run/passwd"
    users = [line.split(":") for line in passwd.read_text().splitlines()]
    assert [(name, uid, gid) for name, _, uid, gid, *_ in users] == [
        ("root", "0", "0"),
        ("tandem", "4321", "1234"),
    ]
    assert all(len(user) == 7 for user in users)
    assert passwd.stat().st_mode & 0o777 == 0o644


def test_the_keys_are_two_and_can_be_loaded(tmp_path: Path) -> None:
    provision(plan(tmp_path, peer="intel"))
    secrets = tmp_path / "var" / "secrets"
    keys = [
        load_ssh_private_key((secrets / name).read_bytes(), password=None)
        for name in ("deploy_data_key", "deploy_command_key")
    ]
    assert keys[0] != keys[1]
    assert (secrets / "deploy_data_key.pub").read_text().startswith("ssh-ed25519 ")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    provision(plan(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StackError, match="exists already; nothing was written"):
        provision(plan(tmp_path, redis_address="10.0.0.2"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    provision(plan(tmp_path, redis_address="10.0.0.2"), force=True)
    assert "10.0.0.2" in (tmp_path / ".env").read_text()


def test_force_keeps_what_was_added_to_the_environment_by_hand(tmp_path: Path) -> None:
    provision(plan(tmp_path, has_tls=True, is_signed=True, name="train-1", peer="intel"))
    environment = tmp_path / ".env"
    by_hand = "# our port\nTANDEM_SERVER__PORT=9000\nexport TANDEM_LOG_LEVEL=DEBUG\n"
    environment.write_text(environment.read_text() + by_hand)
    for _ in range(2):
        provision(plan(tmp_path), force=True)
        assert environment.read_text() == environment_text(plan(tmp_path)) + by_hand


def test_force_forgets_no_registry_and_takes_another_instead(tmp_path: Path) -> None:
    def registries() -> list[str]:
        lines = (tmp_path / ".env").read_text().splitlines()
        return [line for line in lines if line.startswith("TANDEM_REGISTRY_URL")]

    provision(plan(tmp_path, has_postgresql=True))
    provision(plan(tmp_path), force=True)
    assert registries() == ["TANDEM_REGISTRY_URL=postgresql://tandem@10.0.0.1:5432/tandem"]
    provision(plan(tmp_path, registry_url="postgresql://me@db/x"), force=True)
    assert registries() == ["TANDEM_REGISTRY_URL=postgresql://me@db/x"]


def test_an_intelligence_host_takes_the_training_hosts_password(tmp_path: Path) -> None:
    provision(plan(tmp_path, roles=("intel",), redis_password="0123456789abcdefgh"))
    assert (tmp_path / "var/secrets/redis_password").read_text() == "0123456789abcdefgh\n"
    assert not (tmp_path / "var/secrets/deploy_data_key").exists()


def test_a_port_of_its_own_stands_in_brackets_in_known_hosts() -> None:
    assert known_hosts_line(host="intel", port=22, public_key=HOST_KEY).startswith("intel ssh-ed25519 ")
    assert known_hosts_line(host="intel", port=2222, public_key=HOST_KEY).startswith("[intel]:2222 ssh-")
    with pytest.raises(StackError, match="no public host key"):
        known_hosts_line(host="intel", port=22, public_key="-----BEGIN OPENSSH PRIVATE KEY-----")


def test_the_next_command_names_the_roles_and_the_gpu(tmp_path: Path) -> None:
    both = plan(tmp_path, roles=("train", "intel"), torch="cuda")
    assert next_command(both) == (
        "docker-compose -f docker-compose.yml -f docker-compose.gpu.yml --profile train --profile intel"
        " up -d --build"
    )


def test_a_postgresql_of_this_host_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = plan(tmp_path, has_postgresql=True)
    provision(here)
    home, told = tmp_path / "var", (tmp_path / ".env").read_text()
    secret = home / "secrets/registry_password"
    password = secret.read_text().strip()
    assert secret.stat().st_mode & 0o777 == 0o600
    assert (home / "run/postgresql").stat().st_mode & 0o777 == 0o700
    assert password not in told
    assert "TANDEM_REGISTRY_URL=postgresql://tandem@10.0.0.1:5432/tandem\n" in told
    assert "STACK_POSTGRES_ADDRESS=10.0.0.1\n" in told
    assert next_command(here) == "docker-compose --profile postgres --profile train up -d --build"
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_settings().database_url == f"postgresql://tandem:{password}@10.0.0.1:5432/tandem"
    provision(here, force=True)
    assert secret.read_text().strip() == password


def test_a_host_without_a_database_has_an_empty_password_for_it_until_it_gets_one(tmp_path: Path) -> None:
    secret = tmp_path / "var/secrets/registry_password"
    provision(plan(tmp_path))
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("", 0o600)
    provision(plan(tmp_path, has_postgresql=True), force=True)
    made = secret.read_text()
    assert len(made.strip()) > 20
    provision(plan(tmp_path), force=True)
    assert secret.read_text() == made


def test_a_registry_elsewhere_is_named_and_its_password_kept(tmp_path: Path) -> None:
    provision(plan(tmp_path, registry_url="postgresql://me@db:5433/x?sslmode=require", registry_password="h"))
    assert (
        "TANDEM_REGISTRY_URL=postgresql://me@db:5433/x?sslmode=require\n" in (tmp_path / ".env").read_text()
    )
    assert (tmp_path / "var/secrets/registry_password").read_text() == "h\n"
    assert "STACK_POSTGRES" not in (tmp_path / ".env").read_text()


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:hush@db/x", "sqlite:///x", "postgresql://me@db/x\nTANDEM_HOME=/", "postgresql://db/x"],
)
def test_a_registry_that_tells_its_password_or_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="registry_url"):
        plan(tmp_path, registry_url=url)


def test_a_line_break_cannot_smuggle_a_setting_into_the_environment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="redis_address"):
        plan(tmp_path, redis_address="10.0.0.1\nTANDEM_HOME=/")
    assert environment_text(plan(tmp_path)).count("TANDEM_HOME=") == 1


def test_redis_over_tls_is_told_to_both_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provision(plan(tmp_path / "train", has_tls=True, is_signed=True))
    secrets = tmp_path / "train/var/secrets"
    other = plan(
        tmp_path / "intel",
        roles=("intel",),
        redis_authority=(secrets / "redis_ca.crt").read_text(),
        signing_keys=secrets / "signing",
    )
    provision(other)
    taken = tmp_path / "intel/var/secrets"
    assert (taken / "redis_ca.crt").read_text() == (secrets / "redis_ca.crt").read_text()
    for name in ("key.pem", "certificate.pem", "trusted/train.pem"):
        assert (taken / "signing" / name).read_text() == (secrets / "signing" / name).read_text()
        assert (taken / "signing" / name).stat().st_mode & 0o777 == 0o600
    signing.enable(taken / "signing")
    monkeypatch.chdir(tmp_path / "intel")
    settings = load_settings()
    assert settings.redis.signed
    assert settings.redis_url.startswith("rediss://tandem")
    assert f"ssl_ca_certs={quote(str(taken / 'redis_ca.crt'), safe='')}" in settings.redis_url


def test_the_certificate_of_redis_names_its_address(tmp_path: Path) -> None:
    provision(plan(tmp_path, has_tls=True))
    redis = tmp_path / "var/run/redis"
    certificate = load_pem_x509_certificate((redis / "redis_server.crt").read_bytes())
    authority = load_pem_x509_certificate((redis / "redis_ca.crt").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["10.0.0.1", "localhost", "127.0.0.1"]


def test_signing_without_keys_says_where_they_should_lie(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"the keys in {tmp_path} cannot be used"):
        signing.enable(tmp_path)


def test_a_named_host_bears_its_name_in_its_settings_its_gate_and_its_keys(tmp_path: Path) -> None:
    training = tmp_path / "training"
    provision(plan(training, peer="intel-2", server_key=HOST_KEY, name="train-1"))
    secrets = training / "var/secrets"
    assert "TANDEM_NAME=train-1\n" in (training / ".env").read_text()
    assert (secrets / "deploy_data_key.pub").read_text().endswith(" deploy_data_key@train-1\n")
    assert (secrets / "known_hosts").read_text().startswith("intel-2 ssh-ed25519 ")
    data, command = ((secrets / f"{name}.pub").read_text().strip() for name in KEYS)
    provision(
        plan(tmp_path, roles=("intel",), name="intel-2", data_public_key=data, command_public_key=command)
    )
    assert json.loads((tmp_path / "var/run/gate.json").read_text())["host"] == "intel-2"
    assert data in (tmp_path / "var/secrets/authorized_keys").read_text()


@pytest.mark.parametrize(
    "name", ["", "-oProxyCommand=x", "a b", "a\nTANDEM_HOME=/", "a/b", "a@b", "%h", "x" * 65]
)
def test_what_is_no_host_name_is_refused(tmp_path: Path, name: str) -> None:
    for field in ("name", "peer"):
        with pytest.raises(ValueError, match=field):
            plan(tmp_path, **{field: name})
