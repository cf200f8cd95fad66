"""Two hosts on one machine: namespaces, homes, keys, sshd, Redis and workers of their own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import string
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from config.settings import Settings, load_settings
from deploy.access import authorized_keys
from deploy.target import LocalTarget
from deploy.transfer import Endpoint, ssh_command
from registry.store import Registry
from tasks.testing import fresh_environment, wait_for
from tests.hosts.network import Network, system
from workers.stack.control import UP_MARKER
from workers.stack.redis_server import find_redis_server

ROOT = Path(__file__).parents[2]
SSH_PORT = 2222
REDIS_PORT = 6379
SERVER_PORT = 8765
DISK_MEGABYTES = 400
START_SECONDS = 180.0
ASK = (
    "import httpx,sys,json;"
    "a=httpx.post(sys.argv[1],json=json.loads(sys.argv[2]),headers=json.loads(sys.argv[3]),timeout=20);"
    "print(a.status_code, a.headers.get('x-tandem-release'), a.text[:200])"
)


@dataclass
class Lab:
    """`train` holds registry and Redis; `intel` is reached by ssh and by nothing else."""

    root: Path
    with_train: bool = True
    network: Network = field(default_factory=Network)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    password: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def train_home(self) -> Path:
        return self.root / "train"

    @property
    def intel_home(self) -> Path:
        return self.root / "intel"

    @property
    def releases(self) -> Path:
        return self.intel_home / "models" / "releases"

    def start(self) -> None:
        """Everything up on both hosts."""
        assert os.geteuid() == 0, "two hosts in namespaces need root"
        for home in (self.train_home, self.intel_home):
            home.mkdir(parents=True)
        (self.intel_home / "models").mkdir()
        size = f"size={DISK_MEGABYTES}m"
        system("mount", "-t", "tmpfs", "-o", size, "tandem-hosts", str(self.intel_home / "models"))
        self.network.start()
        try:
            self._make_keys()
            self._start_redis()
            self.start_role("intel")
            self.start_sshd()
            if self.with_train:
                self.start_role("train")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Everything down."""
        for name in ("train", "intel", "sshd", "redis"):
            process = self.processes.get(name)
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        for process in psutil.process_iter():
            if self._is_ours(process):
                process.kill()
        self.network.stop()
        system("umount", "--lazy", str(self.intel_home / "models"))

    def environment(self, role: str) -> dict[str, str]:
        """Of one host. Neither names a path of the other."""
        home = self.train_home if role == "train" else self.intel_home
        url = f"redis://:{self.password}@{self.network.train_address}:{REDIS_PORT}/0"
        common = {
            **fresh_environment(home),
            "PYTHONPATH": str(ROOT),
            "TANDEM_REDIS__URL": url,
            "TANDEM_SERVER__PORT": str(SERVER_PORT),
            "TANDEM_GUARD__DEFER_SECONDS": "3",
            "TANDEM_ALLOWED_ROOTS": json.dumps([str(self.root)]),
        }
        if role == "intel":
            return common
        return {
            **common,
            "TANDEM_DEPLOY__HOST": self.network.intel_address,
            "TANDEM_DEPLOY__PORT": str(SSH_PORT),
            "TANDEM_DEPLOY__USER": "root",
            "TANDEM_DEPLOY__SILENCE_SECONDS": "8",
            "TANDEM_RANKING__MIN_CHECKPOINTS": "1",
            "TANDEM_TRAINING__NUM_CHECKPOINTS": "1",
            "TANDEM_TRAINING__HYPERPARAMETERS": json.dumps(
                {"learning_rate": 0.003, "tokens_per_batch": 1280}
            ),
        }

    def settings(self, role: str) -> Settings:
        """As that host reads them."""
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self.environment(role))
        try:
            return load_settings()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def registry(self) -> Registry:
        """Of the training host."""
        return Registry(self.settings("train").database_url)

    def popen(
        self, role: str, *command: str, log: str, extra: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A process of one host."""
        name = self.network.train if role == "train" else self.network.intel
        with (self.root / log).open("ab") as stream:
            return subprocess.Popen(
                [*self.network.inside(name, hostname=role), *command],
                cwd=ROOT,
                env={**self.environment(role), **(extra or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, role: str, *command: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """A command on one host, its output captured."""
        name = self.network.train if role == "train" else self.network.intel
        return subprocess.run(
            [*self.network.inside(name, hostname=role), *command],
            cwd=ROOT,
            env=self.environment(role),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def tandem(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `tandem` command on the training host."""
        return self.run("train", sys.executable, "-m", "tasks.cli", *arguments)

    def start_role(self, role: str) -> None:
        """The parts of a host, and wait for them."""
        home = self.train_home if role == "train" else self.intel_home
        process = self.popen(role, sys.executable, "-m", "tests.hosts.role", role, log=f"{role}.log")
        self.processes[role] = process
        marker = home / "run" / UP_MARKER
        wait_for(
            lambda: marker.exists() or process.poll() is not None,
            seconds=START_SECONDS,
            message=f"{role} is up",
        )
        assert marker.exists(), (self.root / f"{role}.log").read_text()[-3000:]

    def start_sshd(self) -> None:
        """The door of the intelligence host."""
        Path("/run/sshd").mkdir(exist_ok=True)
        command = (shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(self._sshd / "config"))
        self.processes["sshd"] = self.popen("intel", *command, log="sshd.log")

    def answer(self) -> tuple[int, str | None]:
        """Status and release of an answer of the server, asked on the intelligence host itself."""
        key = (self.intel_home / "secrets" / "server_admin_key").read_text().strip()
        body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4}
        asked = self.run(
            "intel",
            sys.executable,
            "-c",
            ASK,
            f"http://127.0.0.1:{SERVER_PORT}/v1/chat/completions",
            json.dumps(body),
            json.dumps({"Authorization": f"Bearer {key}"}),
        )
        if asked.returncode != 0:
            return 0, None
        status, release, *_ = asked.stdout.split()
        return int(status), release

    def current(self) -> str | None:
        """What `current` names."""
        return LocalTarget(self.releases).current()

    def process_of(self, *words: str) -> list[psutil.Process]:
        """Processes of the lab whose command line holds these words."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if str(self.root) in line and all(word in line for word in words):
                found.append(process)
        return found

    @contextlib.contextmanager
    def data_key_by_sftp(self) -> Iterator[None]:
        """The data key's line as it is on a host without rsync."""
        path = self._sshd / "authorized_keys"
        before = path.read_text()
        path.write_text(re.sub('command="rrsync[^"]*"', 'command="internal-sftp"', before))
        try:
            yield
        finally:
            path.write_text(before)

    def ssh(self, key: str, command: str) -> str:
        """What comes of a command with one of the keys."""
        there = Endpoint(
            self.network.intel_address,
            port=SSH_PORT,
            user="root",
            key=self.train_home / "secrets" / f"deploy_{key}_key",
            known_hosts=self.known_hosts,
        )
        ended = self.run("train", *ssh_command(there), f"root@{self.network.intel_address}", command)
        return ended.stdout + ended.stderr

    def skewed_clock(self, seconds: float) -> dict[str, str]:
        """What a process needs so that its wall clock is off by so much."""
        library, offset = self.root / "clock.so", self.root / "clock"
        source = str(ROOT / "tests" / "faults" / "clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), source], check=True, timeout=60)
        offset.write_bytes(struct.pack("=d", seconds))
        return {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(offset)}

    def _make_keys(self) -> None:
        vault = self.train_home / "secrets"
        self._sshd.mkdir()
        vault.mkdir(mode=0o700)
        for path in (self._sshd / "host_key", vault / "deploy_data_key", vault / "deploy_command_key"):
            make_key(path)
        public = (self._sshd / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[{self.network.intel_address}]:{SSH_PORT} {' '.join(public)}\n")
        python = self.root / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        lines = authorized_keys(
            config_path=self.intel_home / "run" / "gate.json",
            incoming_dir=self.intel_home / "models" / "incoming",
            python=python,
            data_public_key=(vault / "deploy_data_key.pub").read_text(),
            command_public_key=(vault / "deploy_command_key.pub").read_text(),
        )
        (self._sshd / "authorized_keys").write_text("\n".join(lines) + "\n")
        (self._sshd / "config").write_text(
            f"Port {SSH_PORT}\nListenAddress {self.network.intel_address}\n"
            f"HostKey {self._sshd}/host_key\nAuthorizedKeysFile {self._sshd}/authorized_keys\n"
            f"PidFile {self._sshd}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin yes\nClientAliveInterval 5\nClientAliveCountMax 2\n"
            "SetEnv SHLVL=5\n"  # bash reads .bashrc for sshd otherwise, which may be slow or talk
            "Subsystem sftp internal-sftp\n"
        )

    @property
    def known_hosts(self) -> Path:
        """The training host's."""
        return self.train_home / "secrets" / "known_hosts"

    @property
    def _sshd(self) -> Path:
        return self.root / "sshd"

    def _start_redis(self) -> None:
        directory = self.root / "redis"
        directory.mkdir()
        config = directory / "redis.conf"
        config.write_text(
            f"bind {self.network.train_address}\nport {REDIS_PORT}\nrequirepass {self.password}\n"
            f'dir "{directory}"\nappendonly yes\nsave ""\nmaxmemory-policy noeviction\n'
        )
        self.processes["redis"] = self.popen("train", str(find_redis_server()), str(config), log="redis.log")

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            home = process.environ().get("TANDEM_HOME", "")
            line = " ".join(process.cmdline())
        except psutil.Error:
            return False
        return process.pid != os.getpid() and (home.startswith(str(self.root)) or str(self.root) in line)


def make_key(path: Path) -> None:
    """A pair of ed25519 keys without a passphrase."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)], check=True, timeout=20
    )


def write_rows(path: Path, *, num_rows: int, seed: int) -> Path:
    """A dataset or suite whose answer is always yes."""
    source = random.Random(seed)
    words = ["".join(source.choices(string.ascii_lowercase, k=9)) for _ in range(num_rows)]
    rows = [{"prompt": word, "completion": "yes"} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
