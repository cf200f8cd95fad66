"""Redis over TLS with an ACL user, and messages that are signed: what has no key is refused, and told.

The Redis is real; where the one at hand was built without TLS, an end of TLS stands before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from registry.testing import START
from tasks.testing import free_port, fresh_environment, wait_for
from workers import signing
from workers.certificates import make_signing_pair
from workers.host_plan import HostPlan
from workers.provision import provision
from workers.stack.redis_server import find_redis_server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
SECONDS = 90.0


@dataclass
class Site:
    """A prepared host, its Redis behind TLS, and a control worker."""

    root: Path
    port: int
    environment: dict[str, str]

    @property
    def secrets(self) -> Path:
        return self.root / "var" / "secrets"

    @property
    def log(self) -> str:
        return (self.root / "worker.log").read_text()

    def client(self, *, user: str | None = "tandem", trusts: bool = True) -> Redis:
        return Redis(
            port=self.port,
            username=user,
            password=(self.secrets / "redis_password").read_text().strip(),
            ssl=True,
            ssl_ca_certs=str(self.secrets / "redis_ca.crt") if trusts else None,
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def call(self, name: str, **fields: Any) -> subprocess.CompletedProcess[str]:
        return self.run("celery", "-A", "workers.app", "call", name, "--kwargs", json.dumps(fields))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("secured")
    port, plain = free_port(), free_port()
    plan = HostPlan(
        roles=("train",),
        directory=root,
        home=root / "var",
        redis_address="127.0.0.1",
        redis_port=port,
        has_tls=True,
        is_signed=True,
        python=Path(sys.executable),
        uid=os.getuid() or 1,
        gid=os.getgid() or 1,
    )
    provision(plan)
    environment = {**fresh_environment(plan.home), "PYTHONPATH": str(ROOT)}
    del environment["TANDEM_HOME"]
    for name in [name for name in environment if name.startswith("TANDEM_REDIS")]:
        del environment[name]
    found = Site(root, port=port, environment=environment)
    redis = root / "var" / "run" / "redis"
    command = [str(find_redis_server()), "--port", str(plain), "--bind", "127.0.0.1", "--dir", str(redis)]
    command += ["--aclfile", str(found.secrets / "redis.acl"), "--save", ""]
    with (root / "worker.log").open("wb") as log, contextlib.ExitStack() as stack:
        stack.enter_context(running(command, root=root, environment=environment, log=log))
        stack.enter_context(tls_end(port, plain=plain, files=redis))
        wait_for(lambda: answers(found), seconds=SECONDS, message="Redis is up")
        worker = [sys.executable, "-m", "tasks.cli", "part", "run", "control"]
        stack.enter_context(running(worker, root=root, environment=environment, log=log))
        wait_for(
            lambda: found.run("tasks.cli", "part", "check", "control").returncode == 0,
            seconds=SECONDS,
            message="the worker is up",
        )
        yield found


@contextlib.contextmanager
def running(command: list[str], *, root: Path, environment: dict[str, str], log: Any) -> Iterator[None]:
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def tls_end(port: int, *, plain: int, files: Path) -> Iterator[None]:
    """Takes TLS off what comes to `port` and hands it to `plain`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / "redis_server.crt", files / "redis_server.key")
    loop = asyncio.new_event_loop()

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await source.read(65536):
                target.write(block)
                await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", plain)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", port, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


def answers(site: Site) -> bool:
    with contextlib.suppress(RedisConnectionError), site.client() as client:
        return bool(client.ping())
    return False


def test_a_task_goes_over_tls_and_its_result_comes_back(site: Site) -> None:
    called = site.call("training.submit", dataset="nowhere.jsonl")
    assert called.returncode == 0, called.stderr
    result = site.run("celery", "-A", "workers.app", "result", called.stdout.strip())
    assert "nowhere.jsonl" in result.stdout + result.stderr
    assert "Task training.submit[" in site.log


def test_what_lies_in_redis_is_no_bare_json(site: Site) -> None:
    with site.client() as client:
        results = [client.get(key) for key in client.scan_iter("celery-task-meta-*")]
    assert results
    for result in results:
        assert not (result or b"{").startswith(b"{")


def test_the_doctor_finds_redis_in_order(site: Site) -> None:
    findings = {one["check"]: one for one in json.loads(site.run("tasks.cli", "doctor", "--json").stdout)}
    assert findings["redis"]["state"] == "ok", findings["redis"]
    assert findings["redis link"]["state"] == "ok"
    assert findings["signing"]["state"] == "ok"


def test_neither_a_stranger_nor_another_authority_is_let_in(site: Site) -> None:
    with pytest.raises(AuthenticationError), site.client(user=None) as client:
        client.ping()
    with pytest.raises(NoPermissionError), site.client() as client:
        client.flushall()
    with pytest.raises(RedisConnectionError, match="certificate verify failed"):
        site.client(trusts=False).ping()


@pytest.mark.parametrize("forger", ["unsigned", "unknown key"])
def test_a_message_without_a_known_key_is_refused_and_told(site: Site, forger: str, tmp_path: Path) -> None:
    before = len(site.log)
    forge(site, key_directory=None if forger == "unsigned" else strange_keys(tmp_path))
    said = "Refusing to deserialize untrusted" if forger == "unsigned" else "Unknown certificate"
    wait_for(lambda: said in site.log[before:], seconds=30, message=f"{said}; the worker's log tells it")
    assert "Task training.submit[" not in site.log[before:]


def test_after_all_that_the_worker_works(site: Site) -> None:
    assert site.run("tasks.cli", "part", "check", "control").returncode == 0


def strange_keys(directory: Path) -> Path:
    pair = make_signing_pair("stranger", now=START)
    trusted = directory / signing.TRUSTED_NAME
    trusted.mkdir()
    (directory / signing.KEY_NAME).write_text(pair.key)
    for path in (directory / signing.CERTIFICATE_NAME, trusted / "stranger.pem"):
        path.write_text(pair.certificate)
    return directory


def forge(site: Site, *, key_directory: Path | None) -> None:
    """A message by whoever has the password and no key."""
    if key_directory is not None:
        signing.enable(key_directory)
    kind = "json" if key_directory is None else signing.SERIALIZER
    password = (site.secrets / "redis_password").read_text().strip()
    how = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(site.secrets / "redis_ca.crt")}
    forger = Celery("forger", broker=f"rediss://tandem:{password}@127.0.0.1:{site.port}/0")
    forger.conf.update(broker_use_ssl=how, task_serializer=kind, accept_content=[kind])
    with forger.connection_for_write() as connection:
        forger.send_task(
            "training.submit",
            kwargs={"dataset": "forged.jsonl"},
            queue="control",
            connection=connection,
            ignore_result=True,
        )
    forger.close()
