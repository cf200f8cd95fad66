"""`tandem init-host`: what a stranger reads where it cannot begin, and how one more host joins."""

from __future__ import annotations

import pwd
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from tasks.cli.main import main

INTEL = "--role intel --redis 10.0.0.1 --redis-password-file password"
JOIN = "--role train --join --redis 10.0.0.1 --redis-password-file password"
HOST_KEY = "ssh-ed25519 AAAAfirst root@intel"
Tandem = Callable[..., tuple[int, str]]


@pytest.fixture
def tandem(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Tandem:
    monkeypatch.delenv("TANDEM_HOME")
    monkeypatch.setattr("workers.provision.os.geteuid", lambda: 1234)
    (tmp_path / "intel.pub").write_text(HOST_KEY)
    (tmp_path / "password").write_text("0123456789abcdef")

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tandem", "init-host", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), " ".join((out + err).split())

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--role intel --name intel-2", "no address of it is given. --redis ADDRESS"),
        ("--role train --peer intel-1", "no address of it is given. --redis ADDRESS"),
        ("--role intel --redis 10.0.0.1", "needs the training host's Redis password"),
        ("--role gpu", "--role 'gpu' cannot be used"),
        ("--role train --name -x", "--name '-x' cannot be used. Letters, digits"),
        ("--role train --name a/b", "--name 'a/b' cannot be used. Letters, digits"),
        ("--role train --add --peer intel-2", "--add --peer NAME --peer-host-key FILE"),
        ("--role train --add --peer intel-2 --peer-host-key intel.pub", "names no first intelligence host"),
        ("--role intel --redis 10.0.0.1 --redis-password-file none", "none cannot be read"),
        (f"{INTEL} --postgresql", "is the first training host's"),
        ("--role train --join", "no address of it is given. --redis ADDRESS"),
        ("--role train --join --redis 10.0.0.1", "A further training host needs the training host's Redis"),
        (JOIN, "needs the registry of the first, and that as PostgreSQL. --registry URL"),
        (f"{JOIN} --role intel", "trains and does nothing else"),
        (f"{JOIN} --peer intel-1", "trains and does nothing else"),
        (f"{JOIN} --postgresql", "a further one has --join --registry URL"),
    ],
)
def test_what_is_missing_or_wrong_is_said_and_nothing_is_written(
    tandem: Tandem, tmp_path: Path, words: str, said: str
) -> None:
    code, answer = tandem(*words.split())
    assert said in answer
    assert code == 1
    assert not (tmp_path / ".env").exists()


def test_a_secret_that_cannot_be_used_is_not_shown(tandem: Tandem, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2")
    words = ("--role", "intel", "--redis", "10.0.0.1", "--redis-password-file", "password")
    code, answer = tandem(*words)
    assert code == 1
    assert "--redis-password-file cannot be used" in answer
    assert "hunter2" not in answer


def test_a_registry_with_its_password_is_refused_and_not_shown(tandem: Tandem, tmp_path: Path) -> None:
    code, answer = tandem("--role", "train", "--registry", "postgresql://me:hunter2@db/x")
    assert code == 1
    assert "--registry cannot be used. postgresql://USER@HOST:PORT/DATABASE, its password in a file" in answer
    assert "hunter2" not in answer


def test_hosts_join_by_name(tandem: Tandem, tmp_path: Path) -> None:
    first = "--role train --name train-1 --redis 10.0.0.1 --peer intel-1 --peer-host-key intel.pub"
    assert tandem(*first.split())[0] == 0
    more = "--role train --add --peer intel-2 --peer-host-key intel.pub"
    code, answer = tandem(*more.split())
    assert code == 0
    assert answer.endswith("Next: docker-compose --profile train up -d --build")
    settings = load_settings()
    assert (settings.host_name, settings.deploy.all_hosts) == ("train-1", ("intel-1", "intel-2"))


def test_a_further_training_host_starts_its_worker_and_nothing_beside_it(
    tandem: Tandem, tmp_path: Path
) -> None:
    (tmp_path / "registry_password").write_text("hunter2\n")
    registry = (
        "--registry postgresql://tandem@10.0.0.1:5432/tandem --registry-password-file registry_password"
    )
    code, answer = tandem(*f"{JOIN} --name train-2 {registry} --torch cuda".split())
    assert code == 0, answer
    assert answer.endswith(
        "Next: docker-compose -f docker-compose.yml -f docker-compose.gpu.yml --profile train up -d --build "
        "--no-deps train"
    )
    settings = load_settings()
    assert settings.host_name == "train-2"
    assert settings.database_url == "postgresql://tandem:hunter2@10.0.0.1:5432/tandem"
    assert settings.redis_url == "redis://tandem:0123456789abcdef@10.0.0.1:6390/0"
    assert "hunter2" not in (tmp_path / ".env").read_text()
    assert not (tmp_path / "var/secrets/deploy_data_key").exists()


def test_an_intelligence_host_that_lets_nobody_in_yet_says_so(tandem: Tandem) -> None:
    words = "--role intel --name intel-2 --redis 10.0.0.1 --redis-password-file password"
    code, answer = tandem(*words.split())
    assert code == 0
    assert "The training host is not let in yet: --peer-keys" in answer


def test_where_rsync_is_missing_it_is_said_how_files_come(
    tandem: Tandem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "--role train --redis 10.0.0.1 --peer intel-1 --home train"
    assert tandem(*first.split())[0] == 0
    (tmp_path / ".env").unlink()
    monkeypatch.setattr("tasks.cli.containers.shutil.which", lambda name: None if name == "rrsync" else name)
    words = "--role intel --redis 10.0.0.1 --redis-password-file password --peer-keys train/secrets"
    code, answer = tandem(*words.split())
    assert code == 0
    assert "Files come by SFTP" in answer
    assert 'command="internal-sftp"' in (tmp_path / "var/secrets/authorized_keys").read_text()


@pytest.fixture
def root(tandem: Tandem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Who was given what, where root prepares a host that the training host may enter."""
    first = "--role train --redis 10.0.0.1 --peer intel-1 --home train"
    assert tandem(*first.split())[0] == 0
    (tmp_path / ".env").unlink()
    given: dict[str, tuple[int, int]] = {}

    def give(path: Path, uid: int, gid: int, **_: bool) -> None:
        given[str(path)] = (uid, gid)

    monkeypatch.setattr("workers.provision.os.geteuid", lambda: 0)
    monkeypatch.setattr("workers.provision.os.chown", give)
    return given


def test_root_must_name_the_account_that_the_training_host_enters(
    root: dict[str, tuple[int, int]], tandem: Tandem, tmp_path: Path
) -> None:
    code, answer = tandem(*f"{INTEL} --peer-keys train/secrets".split())
    assert code == 1
    assert "the account that the training host enters is not named. --user NAME" in answer
    assert not (tmp_path / ".env").exists()


def test_all_is_that_accounts_whom_root_names(
    root: dict[str, tuple[int, int]], tandem: Tandem, tmp_path: Path
) -> None:
    account = pwd.getpwnam("nobody")
    code, answer = tandem(*f"{INTEL} --peer-keys train/secrets --user nobody".split())
    assert code == 0, answer
    assert "Let the training host in, as the user nobody: cat" in answer
    assert f"STACK_UID={account.pw_uid}\nSTACK_GID={account.pw_gid}\n" in (tmp_path / ".env").read_text()
    assert f"tandem:x:{account.pw_uid}:" in (tmp_path / "var/run/passwd").read_text()
    for path in ("var/run/gate.json", "var/models/cache", "var/secrets/server_admin_key", ".env"):
        assert root[str(tmp_path / path)] == (account.pw_uid, account.pw_gid), path


@pytest.mark.parametrize(
    ("user", "said"),
    [("root", "The parts never run as root"), ("no-such-account", "There is no account 'no-such-account'")],
)
def test_an_account_that_cannot_be_is_refused(
    root: dict[str, tuple[int, int]], tandem: Tandem, user: str, said: str
) -> None:
    code, answer = tandem(*f"{INTEL} --peer-keys train/secrets --user {user}".split())
    assert code == 1
    assert said in answer


def test_only_root_prepares_a_host_for_another_account(tandem: Tandem) -> None:
    code, answer = tandem(*f"{INTEL} --user nobody".split())
    assert code == 1
    assert "Only root prepares a host for nobody" in answer
