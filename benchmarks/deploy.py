"""A release over ssh end to end, beside plain `rsync` and `sha256sum` of the same files in the same run.

An sshd of its own on loopback with tandem's two narrow keys, and the real inference server behind the gate.
tandem's time runs from the plan to the release being current: room asked for, files sent, every sha256 read
there, loaded by the server, probed, flipped. The plain way sends the same files with `rsync -a -W` over the
same sshd and reads them there with `sha256sum`. The two alternate. A release is a small model with so many
bytes beside it, so loading costs the server its hashes and little else.

"again" deploys the same checkpoint as a new release: nothing changed, so files are linked, not sent.
"present" asks for a release that is there.

    python -m benchmarks.deploy [--megabytes 1200] [--repeats 3]
"""

from __future__ import annotations

import argparse
import getpass
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx

from config.settings import Settings, load_settings
from deploy.access import authorized_keys
from deploy.deployer import deploy
from deploy.plan import plan
from deploy.transfer import ssh_command
from inference.testing import build_sealed_tiny_model, seal
from registry.manifests import read_manifest
from registry.records import Deployment
from registry.states import CheckpointState, DeploymentState
from registry.testing import make_checkpoint
from tasks.testing import free_port, wait_for
from workers.remotes import endpoint, open_remote
from workers.stack.gate import write_gate_config
from workers.stack.parts import server_part

ROOT = Path(__file__).parents[1]
BLOCK_BYTES = 1 << 24


class Bench:
    """One home for both sides: they meet through sshd only."""

    def __init__(self, root: Path, *, settings: Settings) -> None:
        self.root = root
        self.settings = settings
        self.generation = 0

    def make(self, *, num_bytes: int, seed: int) -> Path:
        """A checkpoint of that size, unlike any before."""
        path = self.root / f"checkpoint-{seed}"
        build_sealed_tiny_model(path, seed=seed)
        source = random.Random(seed)
        with (path / "padding.dat").open("wb") as stream:
            for start in range(0, num_bytes, BLOCK_BYTES):
                stream.write(source.randbytes(min(BLOCK_BYTES, num_bytes - start)))
        return seal(path)

    def tandem(self, source: Path) -> float:
        """Seconds of a deployment."""
        self.generation += 1
        checkpoint = make_checkpoint(
            state=CheckpointState.ACCEPTED, weights_sha256=read_manifest(source).weights_sha256
        )
        planned = plan(checkpoint, active=None, generation=self.generation, reason="bench", now=now())
        assert planned is not None
        with open_remote(self.settings) as remote:
            begun = time.perf_counter()
            ended = deploy(
                planned,
                source=source,
                target=remote.target,
                door=remote.door,
                probe_prompt="cat",
                report=keep,
                clock=now,
            )
            seconds = time.perf_counter() - begun
        assert ended.state is DeploymentState.ACTIVE, ended.problem
        self.newest = ended.id
        return seconds

    def present(self, source: Path) -> float:
        """Seconds to find that a release is there whole."""
        with open_remote(self.settings) as remote:
            begun = time.perf_counter()
            remote.target.push(source, release_id=self.newest)
            return time.perf_counter() - begun

    def plain(self, source: Path) -> float:
        """Seconds of rsync, then of sha256sum on the far side."""
        target = self.root / "plain"
        there = endpoint(self.settings, host=None, key=self.root / "plain_key")
        ssh = ssh_command(there)
        into = f"{there.user}@{there.host}"
        begun = time.perf_counter()
        run("rsync", "-a", "-W", "-e", " ".join(ssh), f"{source}/", f"{into}:{target}/")
        run(*ssh, into, f"cd {target} && find . -type f -print0 | xargs -0 sha256sum")
        seconds = time.perf_counter() - begun
        shutil.rmtree(target)
        return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandem-deploy-") as directory:
        root = Path(directory)
        with running(root) as settings:
            report(
                Bench(root, settings=settings), num_bytes=options.megabytes * 10**6, repeats=options.repeats
            )


def report(bench: Bench, *, num_bytes: int, repeats: int) -> None:
    """The ways in turn, each with files of its own."""
    bench.tandem(bench.make(num_bytes=1000, seed=1000))  # the server loads its first release
    rows: dict[str, list[float]] = {"plain": [], "tandem": [], "again": [], "present": []}
    ways: dict[str, Callable[[Path], float]] = {"plain": bench.plain, "tandem": bench.tandem}
    for repeat in range(repeats):
        source = bench.make(num_bytes=num_bytes, seed=repeat)
        for name in ("plain", "tandem") if repeat % 2 else ("tandem", "plain"):
            rows[name].append(ways[name](source))
        rows["again"].append(bench.tandem(source))
        rows["present"].append(bench.present(source))
        shutil.rmtree(source)
        with open_remote(bench.settings) as remote:
            remote.target.prune(keep=1, protect=[])
    print(f"{num_bytes / 1e6:.0f} MB, n = {repeats} each; median (lowest to highest) seconds")
    for name, seconds in rows.items():
        print(f"  {name:8} {statistics.median(seconds):8.2f} ({min(seconds):.2f} to {max(seconds):.2f})")
    ratios = [ours / plain for ours, plain in zip(rows["tandem"], rows["plain"], strict=True)]
    print(f"tandem / plain: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


@contextmanager
def running(root: Path) -> Iterator[Settings]:
    """sshd and the inference server, and the settings that lead there."""
    os.environ |= {
        "TANDEM_HOME": str(root / "home"),
        "TANDEM_DEPLOY__HOST": "127.0.0.1",
        "TANDEM_DEPLOY__PORT": str(free_port()),
        "TANDEM_DEPLOY__USER": getpass.getuser(),
        "TANDEM_SERVER__PORT": str(free_port()),
    }
    settings = load_settings()
    gate = write_gate_config(settings)
    config = write_sshd_config(root, settings=settings, gate=gate)
    part = server_part(settings)
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    processes = [quiet(sshd, "-D", "-f", str(config)), quiet(*part.command)]
    try:
        wait_for(lambda: answers(settings), seconds=120, message="the server is up")
        yield settings
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=30)


def write_sshd_config(root: Path, *, settings: Settings, gate: Path) -> Path:
    """Keys, known_hosts, and a configuration of its own."""
    secrets = settings.paths.secrets
    keys = (
        root / "host_key",
        root / "plain_key",
        secrets / "deploy_data_key",
        secrets / "deploy_command_key",
    )
    for key in keys:
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(key))
    public = (root / "host_key.pub").read_text().split()
    port = settings.deploy.port
    (secrets / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    python = root / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    lines = authorized_keys(
        config_path=gate,
        incoming_dir=settings.paths.incoming,
        python=python,
        data_public_key=(secrets / "deploy_data_key.pub").read_text(),
        command_public_key=(secrets / "deploy_command_key.pub").read_text(),
    )
    (root / "authorized_keys").write_text("\n".join([*lines, (root / "plain_key.pub").read_text()]))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    config = root / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {root}/host_key\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {root}/authorized_keys\nUsePAM no\nPermitRootLogin yes\n"
        "SetEnv SHLVL=5\n"  # bash reads .bashrc for sshd otherwise, which may be slow or talk
    )
    return config


def answers(settings: Settings) -> bool:
    """True once the server does."""
    try:
        return httpx.get(f"{settings.server_url}/health", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def quiet(*command: str) -> subprocess.Popen[bytes]:
    """A process whose words nobody wants."""
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)


def run(*command: str) -> None:
    """A command that must work."""
    subprocess.run(command, check=True, capture_output=True, timeout=3600)


def now() -> datetime:
    """Aware UTC."""
    return datetime.now(UTC)


def keep(_before: Deployment, after: Deployment) -> Deployment:
    """No registry: what is reported is kept."""
    return after


if __name__ == "__main__":
    main()
