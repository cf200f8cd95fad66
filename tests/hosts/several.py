"""A training host and several intelligence hosts, each prepared by `tandem init-host` as a stranger would."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from registry.store import Registry
from tasks.testing import fresh_environment, wait_for
from tests.hosts.lab import REDIS_PORT, ROOT, SERVER_PORT, SSH_PORT, START_SECONDS, make_key
from tests.hosts.network import Star, inside
from workers.stack.control import UP_MARKER
from workers.stack.redis_server import find_redis_server

# All machines bear it: only `--name` tells them apart.
HOST_NAME = "gpu-box"
TRAIN = "train"


@dataclass
class SeveralHosts:
    """The first of `evaluators` serves too."""

    root: Path
    evaluators: tuple[str, ...]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.star = Star(TRAIN, self.evaluators)

    def start(self) -> None:
        """Prepare all hosts, then bring everything up."""
        assert os.geteuid() == 0, "hosts in namespaces need root"
        self.star.start()
        try:
            self._prepare()
            self._start_redis()
            for number, host in enumerate(self.evaluators):
                self._start_sshd(host)
                self.start_role(host, role="evaluate" if number else "intel")
            self.start_role(TRAIN, role="train")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Everything down."""
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        for other in psutil.process_iter():
            if self._is_ours(other):
                other.kill()
        self.star.stop()

    def home(self, host: str) -> Path:
        """Of a host."""
        return self.root / host / "var"

    def registry(self) -> Registry:
        """Of the training host."""
        return Registry(f"sqlite:///{self.home(TRAIN) / 'tandem.db'}")

    def tandem(self, host: str, *arguments: str) -> str:
        """What the command says on that host; it must succeed."""
        ended = self.run(host, "tasks.cli", *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def start_module(self, host: str, module: str, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """A module on that host, on its way."""
        return self._popen(host, sys.executable, "-m", module, *arguments, log=log)

    def run(self, host: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A module on that host, to its end."""
        return subprocess.run(
            [*self._inside(host), sys.executable, "-m", module, *arguments],
            cwd=self.root / host,
            env=self._environment(host),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start_role(self, host: str, *, role: str) -> None:
        """The parts of a host, and wait for them."""
        process = self._popen(host, sys.executable, "-m", "tests.hosts.role", role, log=f"{host}.log")
        marker = self.home(host) / "run" / UP_MARKER
        wait_for(
            lambda: marker.exists() or process.poll() is not None,
            seconds=START_SECONDS,
            message=f"{host} is up",
        )
        assert marker.exists(), (self.root / f"{host}.log").read_text()[-3000:]

    def cached(self, host: str) -> set[str]:
        """What candidates and suites lie there."""
        cache = self.home(host) / "models" / "cache"
        return {path.name for path in cache.iterdir() if path.is_dir()} if cache.is_dir() else set()

    def under_way(self, host: str) -> int:
        """Evaluations that it took and has not ended."""
        log = (self.home(host) / "logs" / "intelligence.log").read_text()
        taken, ended = (
            len(re.findall(rf"Task evaluation\.run\[[^]]*\] {word}", log))
            for word in ("received", "succeeded")
        )
        return taken - ended

    def _prepare(self) -> None:
        meeting = ("--redis", self.star.address, "--redis-port", str(REDIS_PORT))
        for host in (TRAIN, *self.evaluators):
            (self.root / host).mkdir(parents=True)
        for number, host in enumerate(self.evaluators):
            make_key(self.root / host / "host_key")
            key = ("--peer-host-key", str(self.root / host / "host_key.pub"))
            how = ("--add",) if number else ("--name", TRAIN, *meeting)
            peer = ("--peer", host, "--peer-port", str(SSH_PORT), *key)
            self.tandem(TRAIN, "init-host", "--role", "train", *peer, *how)
        secrets = self.home(TRAIN) / "secrets"
        copied = ("--redis-password-file", str(secrets / "redis_password"), "--peer-keys", str(secrets))
        copied += ("--user", "nobody")  # root prepares, and everything in the lab runs as root
        for host in self.evaluators:
            self.tandem(host, "init-host", "--role", "intel", "--name", host, *meeting, *copied)

    def _environment(self, host: str) -> dict[str, str]:
        """Beside the host's own `.env`: what makes a lab quick, and who may come in."""
        # Ports and the address of Redis are the host's own to say.
        fresh = {
            name: value for name, value in fresh_environment(self.home(host)).items() if "__PORT" not in name
        }
        return {
            **fresh,
            "PYTHONPATH": str(ROOT),
            "TANDEM_SERVER__PORT": str(SERVER_PORT),
            "TANDEM_DEPLOY__USER": "root",
            "TANDEM_DEPLOY__SILENCE_SECONDS": "8",
            "TANDEM_EVALUATION__RETRY_AFTER_SECONDS": "60",
            "TANDEM_GUARD__DEFER_SECONDS": "3",
            "TANDEM_ALLOWED_ROOTS": json.dumps([str(self.root)]),
        }

    def _inside(self, host: str) -> list[str]:
        return inside(self.star.namespace(host), hostname=HOST_NAME)

    def _popen(self, host: str, *command: str, log: str) -> subprocess.Popen[bytes]:
        with (self.root / log).open("ab") as stream:
            self.processes[log] = subprocess.Popen(
                [*self._inside(host), *command],
                cwd=self.root / host,
                env=self._environment(host),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[log]

    def _start_redis(self) -> None:
        """As docker-compose.yml starts it, with the access rules that `init-host` wrote."""
        directory = self.home(TRAIN) / "run" / "redis"
        config = self.root / "redis.conf"
        config.write_text(
            f"bind {self.star.address}\nport {REDIS_PORT}\naclfile {self.home(TRAIN)}/secrets/redis.acl\n"
            f'dir "{directory}"\nappendonly yes\nsave ""\nmaxmemory-policy noeviction\n'
        )
        self._popen(TRAIN, str(find_redis_server()), str(config), log="redis.log")

    def _start_sshd(self, host: str) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.root / host / "sshd_config"
        config.write_text(
            f"Port {SSH_PORT}\nHostKey {self.root}/{host}/host_key\nPidFile {self.root}/{host}/pid\n"
            f"AuthorizedKeysFile {self.home(host)}/secrets/authorized_keys\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
            "SetEnv SHLVL=5\n"  # bash reads .bashrc for sshd otherwise, which may be slow or talk
        )
        command = (shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(config))
        self._popen(host, *command, log=f"sshd-{host}.log")

    def _is_ours(self, process: psutil.Process) -> bool:
        below = str(self.root)
        try:
            home = process.environ().get("TANDEM_HOME", "")
            line = " ".join(process.cmdline())
        except psutil.Error:
            return False
        return process.pid != os.getpid() and (home.startswith(below) or below in line)
