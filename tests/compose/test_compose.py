"""Both profiles of docker-compose.yml, for real: healthy, not root, and no container's end loses anything."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.testing import free_port
from workers.host_plan import HostPlan
from workers.provision import provision

ROOT = Path(__file__).parents[2]
PARTS = ("redis", "control", "beat", "train", "flower", "intelligence", "server")
QUICK = (
    "TANDEM_SCHEDULE__SWEEP_SECONDS=5",
    "TANDEM_TRAINING__LEASE_SECONDS=15",
    "TANDEM_TRAINING__HEARTBEAT_SECONDS=2",
)
TRAINING = {"learning_rate": 0.003, "tokens_per_batch": 1280}
pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]


class Site:
    """A directory with docker-compose.yml and what `tandem init-host` wrote."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "var"
        self.server_port = free_port()

    def run(self, *command: str, timeout: float = 400) -> str:
        ran = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def compose(self, *arguments: str) -> str:
        return self.run("docker-compose", "--profile", "train", "--profile", "intel", *arguments)

    def tandem(self, *arguments: str) -> Any:
        return json.loads(self.compose("exec", "-T", "control", "tandem", *arguments, "--json"))

    def container(self, service: str) -> dict[str, Any]:
        name = self.compose("ps", "-a", "-q", service).strip()
        found: dict[str, Any] = json.loads(self.run("docker", "inspect", name))[0]
        return found

    def health(self) -> dict[str, str]:
        return {part: self.container(part)["State"]["Health"]["Status"] for part in PARTS}

    def wait_until_healthy(self) -> None:
        wait_for(lambda: set(self.health().values()) == {"healthy"}, seconds=400, what=self.describe)

    def describe(self) -> str:
        return f"{self.health()}\n{self.compose('logs', '--tail', '15')}"

    def call_submit(self, dataset: Path) -> str:
        """Submit as the design says a user may; the job's id."""
        kwargs = json.dumps({"dataset": str(dataset), "hyperparameters": TRAINING, "priority": "high"})
        known = {job["id"] for job in self.tandem("job", "list")}
        self.compose(
            *("exec", "-T", "control", "celery", "-A", "workers.app"),
            *("call", "training.submit", "--kwargs", kwargs),
        )
        wait_for(lambda: len(self.tandem("job", "list")) > len(known), seconds=60, what=self.describe)
        (new,) = {job["id"] for job in self.tandem("job", "list")} - known
        return str(new)

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {job["id"]: job for job in self.tandem("job", "list")}
        return found[job_id]


def wait_for(what_holds: Callable[[], object], *, seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what_holds():
        assert time.monotonic() < deadline, what()
        time.sleep(2)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("tandem")
    for name in ("docker-compose.yml", "docker-compose.gpu.yml"):
        shutil.copy(ROOT / name, directory)
    found = Site(directory)
    prepare(found)
    try:
        found.run("docker-compose", "--profile", "train", "up", "-d", "--no-build")
        found.run("docker-compose", "--profile", "intel", "up", "-d", "--no-build")
        found.wait_until_healthy()
        yield found
    finally:
        found.compose("down", "--volumes")


def prepare(site: Site) -> None:
    port = str(free_port())
    command = [sys.executable, "-m", "tasks.cli", "init-host", "--role", "train", "--role", "intel"]
    site.run(*command, "--redis-port", port)
    with (site.directory / ".env").open("a") as stream:
        stream.write(f"TANDEM_SERVER__PORT={site.server_port}\nTANDEM_FLOWER__PORT={free_port()}\n")
        stream.write("\n".join(QUICK) + "\n")
    site.run(sys.executable, "-m", "tasks.demo.material", str(site.home / "material"))
    owner = (site.home / "inbox").stat()
    for path in (site.home / "material", *(site.home / "material").rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)


def test_every_container_is_confined_and_none_runs_as_root(site: Site) -> None:
    for part in PARTS:
        found = site.container(part)
        assert site.compose("exec", "-T", part, "id", "-u").strip() != "0", part
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"], part
        assert host["CapDrop"] == ["ALL"], part
        assert not host["Privileged"], part
        assert "no-new-privileges:true" in host["SecurityOpt"], part
        assert host["RestartPolicy"]["Name"] == "unless-stopped", part
        assert host["LogConfig"]["Config"]["max-size"], part


def test_ssh_starts_in_a_container_whoever_prepared_the_host(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    provision(
        HostPlan(
            roles=("train",),
            directory=tmp_path,
            home=tmp_path / "var",
            redis_address="127.0.0.1",
            python=Path(sys.executable),
            uid=12345,
            gid=12345,
        )
    )
    run = ("docker-compose", "--profile", "train", "run", "--rm", "--no-deps", "--entrypoint", "ssh", "train")
    there = ("-F", "none", "-o", "BatchMode=yes", "-p", str(free_port()), "somebody@127.0.0.1")
    ended = subprocess.run(
        [*run, *there], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Connection refused" in ended.stderr, ended.stdout + ended.stderr


def test_no_password_stands_in_what_docker_tells_of_a_container(site: Site) -> None:
    passwords = [
        (site.home / "secrets" / name).read_text().strip()
        for name in ("redis_password", "flower_password", "server_admin_key")
    ]
    for part in PARTS:
        told = json.dumps(site.container(part))
        assert not any(password in told for password in passwords), part


def test_the_doctor_finds_nothing_failed_inside(site: Site) -> None:
    findings = {finding["check"]: finding["state"] for finding in site.tandem("doctor")}
    for check in ("home", "secrets", "rsync", "ssh", "redis", "redis memory", "redis file", "redis user"):
        assert findings[check] == "ok", findings
    assert findings["registry"] == "ok"


def test_a_job_is_trained_evaluated_deployed_and_served(site: Site) -> None:
    material = site.home / "material"
    site.tandem("checkpoint", "import", str(material / "base-model"), "--as-base")
    site.tandem("suite", "build", str(material / "suite.jsonl"))
    job_id = site.call_submit(material / "words-3-to-5.jsonl")
    wait_for(lambda: site.job(job_id)["state"] == "succeeded", seconds=400, what=site.describe)

    def judged() -> list[str]:
        lines = site.tandem("checkpoint", "list")
        return [line["id"] for line in lines if line["verdict"] and line["id"].startswith("ckpt-")]

    wait_for(judged, seconds=300, what=site.describe)
    checkpoint = judged()[-1]
    site.tandem("deploy", "now", checkpoint)
    answer = httpx.post(
        f"http://127.0.0.1:{site.server_port}/v1/chat/completions",
        json={"model": "tandem", "messages": [{"role": "user", "content": "Spell backward: cat"}]},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Tandem-Release"] == site.tandem("status")["served"]["release_id"]


@pytest.mark.parametrize("part", PARTS)
def test_stopping_a_container_loses_nothing(site: Site, part: str) -> None:
    rows = (site.home / "material" / "words-3-to-5.jsonl").read_text().splitlines()
    own = PARTS.index(part)
    dataset = site.home / "inbox" / f".{part}.rows"
    dataset.write_text("\n".join(rows[own : own + 400]) + "\n")
    shutil.chown(dataset, (site.home / "inbox").stat().st_uid)
    served = site.tandem("status")["served"]["release_id"]
    job_id = site.call_submit(dataset)
    name = site.container(part)["Id"]
    site.run("docker", "stop", name)
    assert site.container(part)["State"]["ExitCode"] != 137, "it had to be killed"
    site.run("docker", "start", name)
    site.wait_until_healthy()
    wait_for(lambda: site.job(job_id)["state"] == "succeeded", seconds=400, what=site.describe)
    assert site.tandem("status")["served"]["release_id"] == served
    assert site.tandem("status")["served"]["agrees"] is True
