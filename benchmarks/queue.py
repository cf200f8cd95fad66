"""tandem's queue beside bare Celery, in the same run on the same Redis: enqueue rate and time to start.

A job of tandem is a row and a bell; it has started when its trainer would be spawned, after the claim under a
lease and the job file. A job of bare Celery is a message; it has started at the first line of its task. For
the time to start, jobs are submitted one at a time to an idle worker; for the rate, as fast as can be. The
registry holds so many finished jobs beforehand. Blocks of the two alternate, so that a drift of the machine
favours neither.

    python -m benchmarks.queue [--jobs 1000] [--finished 0 10000 100000] [--databases sqlite postgresql]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import insert

from benchmarks.support import bare
from config.settings import load_settings
from registry import queue
from registry.schema import upgrade
from registry.states import Priority
from registry.tables import events, jobs
from registry.testing import START, make_checkpoint, make_dataset, make_job
from registry.testing_postgresql import postgresql_server
from tasks.testing import free_port
from workers.context import Context, open_context
from workers.pipeline import bell
from workers.stack.redis_server import find_redis_server, write_redis_config

BLOCK = 50
CHUNK = 5000
WAIT_SECONDS = 30
IDLE_SECONDS = 0.1
URL = "BENCHMARK_REDIS_URL"
Submit = Callable[[int], str]


@dataclass
class Contender:
    """One side: how it submits, where its starts are told, and what was measured."""

    name: str
    submit: Submit
    starts: str
    seconds_to_start: list[float] = field(default_factory=list)
    seconds_to_submit: list[float] = field(default_factory=list)
    jobs_per_second: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Of the times to start, in milliseconds."""
        ordered = sorted(self.seconds_to_start)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    """Print a table for each database and number of finished jobs, each in a process of its own."""
    options = _options()
    cases = [(database, number) for database in options.databases for number in options.finished]
    if len(cases) == 1:
        _run_case(*cases[0], num_jobs=options.jobs)
        return 0
    for database, number in cases:
        arguments = ["--jobs", options.jobs, "--databases", database, "--finished", number]
        command = [sys.executable, "-m", "benchmarks.queue", *map(str, arguments)]
        subprocess.run(command, check=True)
    return 0


def _run_case(database: str, num_finished: int, *, num_jobs: int) -> None:
    with ExitStack() as stack:
        contenders, client = _start(stack, database=database, num_finished=num_finished)
        _measure(contenders, client=client, num_jobs=num_jobs)
    _print(contenders, database=database, num_finished=num_finished)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--finished", type=int, nargs="+", default=[0, 10_000, 100_000])
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    return parser.parse_args()


def _start(stack: ExitStack, *, database: str, num_finished: int) -> tuple[list[Contender], Redis]:
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-queue-")))
    os.environ |= {"TANDEM_HOME": str(home), "TANDEM_REDIS__PORT": str(free_port())}
    os.environ.pop("TANDEM_REGISTRY_URL", None)
    if database == "postgresql":
        os.environ["TANDEM_REGISTRY_URL"] = stack.enter_context(postgresql_server())
    settings = load_settings()
    settings.paths.prepare()
    os.environ[URL] = settings.redis_url
    log = stack.enter_context((home / "log").open("wb"))
    redis_command = [str(find_redis_server()), str(write_redis_config(settings))]
    stack.enter_context(_process(redis_command, log=log))
    client = stack.enter_context(Redis.from_url(settings.redis_url, socket_timeout=2 * WAIT_SECONDS))
    _wait_until(lambda: _answers(client))
    context = open_context(settings)
    context.celery.conf.broker_url = context.celery.conf.result_backend = settings.redis_url
    bare.app.conf.broker_url = settings.redis_url
    stack.callback(context.registry.engine.dispose)
    _fill(context, num_finished=num_finished)
    for module, queues in (("support.bare", "bare"), ("support.idle_trainer", "high,normal,low")):
        command = [sys.executable, "-m", "celery", "-A", f"benchmarks.{module}", "worker", "-Q", queues]
        command += ["-c", "1", "-n", f"{module}@%h", "--without-gossip", "--without-mingle"]
        stack.enter_context(_process(command, log=log))
    contenders = [
        Contender("bare Celery", _bare_submit, "bare-started"),
        Contender("tandem", _tandem_submit(context), "tandem-started"),
    ]
    return contenders, client


def _fill(context: Context, *, num_finished: int) -> None:
    """A base model, a dataset, and jobs that ended long ago with their events."""
    upgrade(context.registry)
    with context.registry.transaction() as tx:
        tx.add(make_dataset(), actor="benchmark")
        tx.add(make_checkpoint(id="base-1", origin="base", step=0), actor="benchmark")
    done = make_job(state="succeeded", finished_at=START).model_dump(mode="json")
    times = dict.fromkeys(("submitted_at", "finished_at"), START)
    for first in range(0, num_finished, CHUNK):
        ids = [f"job-old-{number}" for number in range(first, min(first + CHUNK, num_finished))]
        rows = [{**done, **times, "id": name, "dedupe_key": name} for name in ids]
        story = [
            {"at": START, "actor": "w", "kind": "TrainingJob", "subject_id": name, "before": None}
            | {"after": after, "reason": "", "data": {}}
            for name in ids
            for after in ("submitted", "queued", "running", "succeeded")
        ]
        with context.registry.transaction() as tx:
            tx.connection.execute(insert(jobs), rows)
            tx.connection.execute(insert(events), story)


def _bare_submit(number: int) -> str:
    bare.app.send_task("bare.work", args=[number])
    return str(number)


def _tandem_submit(context: Context) -> Submit:
    def submit(number: int) -> str:
        job = make_job(id=f"job-new-{number}", submitted_at=context.registry.clock())
        with context.registry.transaction() as tx:
            queue.submit(tx, job, actor="benchmark")
        context.ring([bell(job.id, priority=Priority.NORMAL)])
        return job.id

    return submit


def _measure(contenders: Sequence[Contender], *, client: Redis, num_jobs: int) -> None:
    number = 0
    for contender in contenders:  # connections are opened, code is loaded
        for _ in range(10):
            number += 1
            _one(contender, number=number, client=client)
        contender.seconds_to_start.clear()
        contender.seconds_to_submit.clear()
    for block in range(-(-num_jobs // BLOCK)):
        for contender in contenders if block % 2 == 0 else reversed(contenders):
            for _ in range(BLOCK):
                number += 1
                _one(contender, number=number, client=client)
    for contender in contenders:
        _burst(contender, first=number + 1, num_jobs=num_jobs, client=client)
        number += num_jobs


def _one(contender: Contender, *, number: int, client: Redis) -> None:
    began = time.monotonic()
    name = contender.submit(number)
    contender.seconds_to_submit.append(time.monotonic() - began)
    answer: Any = client.blpop([contender.starts], timeout=WAIT_SECONDS)
    if answer is None:
        raise SystemExit(f"{contender.name}: {name} did not start within {WAIT_SECONDS} s.")
    started_name, started = answer[1].decode().split()
    if started_name != name:
        raise SystemExit(f"{contender.name}: {started_name} started, {name} was submitted.")
    contender.seconds_to_start.append(float(started) - began)
    time.sleep(IDLE_SECONDS)  # the worker finishes the job: its queue is idle again


def _burst(contender: Contender, *, first: int, num_jobs: int, client: Redis) -> None:
    began = time.monotonic()
    for number in range(first, first + num_jobs):
        contender.submit(number)
    contender.jobs_per_second.append(num_jobs / (time.monotonic() - began))
    for _ in range(num_jobs):
        if client.blpop([contender.starts], timeout=WAIT_SECONDS) is None:
            raise SystemExit(f"{contender.name}: a job of the burst was lost.")
    contender.jobs_per_second.append(num_jobs / (time.monotonic() - began))


def _print(contenders: Sequence[Contender], *, database: str, num_finished: int) -> None:
    one, other = contenders
    print(f"\n{database}, {num_finished} finished jobs; n = {len(one.seconds_to_start)} jobs each")
    print(f"{'':12} {'start p50':>10} {'p99':>10} {'submit p50':>11} {'burst: submitted':>17} {'done':>10}")
    for contender in contenders:
        submitted, done = contender.jobs_per_second
        print(
            f"{contender.name:12} {contender.quantile(0.5):7.1f} ms {contender.quantile(0.99):7.1f} ms"
            f" {1000 * statistics.median(contender.seconds_to_submit):8.1f} ms"
            f" {submitted:13.0f} /s {done:8.0f} /s"
        )
    ratios = [other.quantile(share) / one.quantile(share) for share in (0.5, 0.99)]
    print(f"tandem / bare Celery: p50 {ratios[0]:.2f}x, p99 {ratios[1]:.2f}x", flush=True)


@contextmanager
def _process(command: Sequence[str], *, log: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=WAIT_SECONDS)


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def _wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit(f"Redis did not answer within {WAIT_SECONDS} s.")
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(main())
