"""tandem's queue beside bare Celery, in the same run on the same Redis with the same Celery settings.

A job of tandem goes the product's own way: the handler of `training.submit` (all of it but reading and
copying the file) writes the row and rings; a real worker runs the handler of `training.run`, which asks for
the device, claims under a lease, writes the job file, and has started when the trainer would be spawned. The
trainer is replaced by one that finishes at once; its job is marked succeeded by the product's code. A job of
bare Celery is a message; it has started at the first line of its task. All workers are prefork with one
process. Time runs from before the submission.

Bare Celery loses a second of messages at a power cut, and tandem none. So it runs again, as `durable`:
Redis syncs its log before it answers, and a message is acknowledged when its work is done. And once more, as
`least`, with the least that keeping a job in the same database costs: one row, one compare-and-set, in plain
SQL. And on SQLite as `replay`, with all statements and the file of tandem's own jobs, by the driver alone.
What tandem takes beyond that is its code; what that takes beyond bare is the price of what is promised.

- paced: one job at a time to an idle worker. Blocks alternate, so that a drift favours nobody.
- burst: as fast as one caller can submit them; times are then those of the backlog.

The registry holds so many finished jobs beforehand, ended long ago. The jobs are shared out among the
repeats, paced and in a burst. Ratios are of all jobs together, and in brackets the lowest and highest of the
repeats.

    python -m benchmarks.queue [--jobs 1000] [--finished 0 10000 100000] [--repeats 4]
        [--database sqlite postgresql]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis
from redis.exceptions import RedisError
from safetensors.numpy import save_file
from sqlalchemy import insert

import tasks.training
from benchmarks.support import bare, idle_trainer, least, recording, replay
from benchmarks.support.told import URL, idle_list, started_list
from config.settings import Settings, load_settings
from registry.messages import TrainingSubmission
from registry.schema import upgrade
from registry.tables import events, jobs
from registry.testing import START, make_checkpoint, make_dataset, make_job
from registry.testing_postgresql import postgresql_server
from tasks.testing import free_port
from workers import intake
from workers.context import Context, open_context
from workers.stack.redis_server import find_redis_server, write_redis_config

BLOCK = 25
CHUNK = 5000
NUM_WARM_UP = 20
WAIT_SECONDS = 60
IDLE_SECONDS = (0.01, 0.03)
P50, P99 = 0.5, 0.99
# name, module, queues
WORKERS = (
    (bare.NAME, "bare_worker", bare.NAME),
    (bare.DURABLE, "bare_worker", bare.DURABLE),
    (bare.LEAST, "bare_worker", bare.LEAST),
    (bare.REPLAY, "bare_worker", bare.REPLAY),
    (idle_trainer.NAME, "idle_trainer", "high,normal,low"),
)


@dataclass
class Sample:
    """Seconds from submission to start, and jobs a second of a burst."""

    seconds: list[float] = field(default_factory=list)
    num_jobs: int = 0
    num_seconds: float = 0.0

    def quantile(self, share: float) -> float:
        """In milliseconds."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Contender:
    """One side: how it submits, giving the job's name, and what was measured in each repeat."""

    name: str
    submit: Callable[[int], str]
    fsync: str = "everysec"
    paced: list[Sample] = field(default_factory=list)
    burst: list[Sample] = field(default_factory=list)
    drained: list[Sample] = field(default_factory=list)


def main() -> int:
    """Print a table for each database and number of finished jobs, each in a process of its own."""
    options = _options()
    cases = [(database, number) for database in options.database for number in options.finished]
    if len(cases) == 1:
        _run_case(*cases[0], options=options)
        return 0
    for database, number in cases:
        arguments = ["--jobs", options.jobs, "--repeats", options.repeats]
        arguments += ["--database", database, "--finished", number]
        command = [sys.executable, "-m", "benchmarks.queue", *map(str, arguments)]
        subprocess.run(command, check=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="of each side: paced, and again in bursts")
    parser.add_argument("--finished", type=int, nargs="+", default=[0, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=4, help="the jobs are shared out among them")
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgresql"])
    return parser.parse_args()


def _run_case(database: str, num_finished: int, *, options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        contenders, client = _start(stack, database=database, num_finished=num_finished)
        _measure(contenders, client=client, num_jobs=options.jobs // options.repeats, repeats=options.repeats)
    _print(contenders, database=database, num_finished=num_finished)


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
    bare.configure()
    context = open_context(settings)
    stack.callback(context.registry.engine.dispose)
    _fill(context, num_finished=num_finished)
    for name, module, queues in WORKERS:
        command = [sys.executable, "-m", "celery", "-A", f"benchmarks.support.{module}", "worker"]
        command += ["-Q", queues, "-c", "1", "-n", f"{name}@%h", "--without-gossip", "--without-mingle"]
        stack.enter_context(_process(command, log=log, environment={bare.CONTENDER: name}))
    contenders = [
        Contender(bare.NAME, _bare_submit(bare.NAME)),
        Contender(bare.DURABLE, _bare_submit(bare.DURABLE), fsync="always"),
        Contender(bare.LEAST, _least_submit()),
        *([Contender(bare.REPLAY, _replay_submit(context))] if database == "sqlite" else []),
        Contender(idle_trainer.NAME, _tandem_submit(context)),
    ]
    return contenders, client


def _fill(context: Context, *, num_finished: int) -> None:
    """A base model, a dataset, and jobs that ended long ago with their events."""
    upgrade(context.registry)
    model = _write_model(context.settings)
    with context.registry.transaction() as tx:
        tx.add(make_dataset(), actor="benchmark")
        tx.add(make_checkpoint(id="base-1", origin="base", step=0, path=str(model)), actor="benchmark")
        tx.add(make_checkpoint(id="ckpt-old", state="accepted", path=str(model)), actor="benchmark")
    done = make_job(state="succeeded", finished_at=START, final_checkpoint_id="ckpt-old").model_dump(
        mode="json"
    )
    for first in range(0, num_finished, CHUNK):
        ids = [f"job-old-{number}" for number in range(first, min(first + CHUNK, num_finished))]
        rows = [
            {**done, "id": name, "dedupe_key": name, "submitted_at": START}
            | {"finished_at": START + timedelta(seconds=first + number)}
            for number, name in enumerate(ids)
        ]
        story = [
            {"at": START, "actor": "w", "kind": "TrainingJob", "subject_id": name, "before": None}
            | {"after": after, "reason": "", "data": {}}
            for name in ids
            for after in ("submitted", "queued", "running", "succeeded")
        ]
        with context.registry.transaction() as tx:
            tx.connection.execute(insert(jobs), rows)
            tx.connection.execute(insert(events), story)


def _write_model(settings: Settings) -> Path:
    """As much of a model as the worker reads before it starts a trainer: its shape."""
    directory = settings.home / "models" / "base"
    directory.mkdir(parents=True)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, "num_attention_heads": 4}
    (directory / "config.json").write_text(json.dumps(shape))
    save_file({"weight": np.zeros((256, 64), np.float32)}, directory / "model.safetensors")
    return directory


def _bare_submit(queue: str) -> Callable[[int], str]:
    def submit(number: int) -> str:
        bare.app.send_task("bare.work", args=[str(number)], ignore_result=True, queue=queue)
        return str(number)

    return submit


def _least_submit() -> Callable[[int], str]:
    ring, numbers = _bare_submit(bare.LEAST), itertools.count()
    least.make_table()

    def submit(_number: int) -> str:
        name = ring(next(numbers))  # a row's name is its own: numbers begin anew with each block
        least.write(name)
        return name

    return submit


def _replay_submit(context: Context) -> Callable[[int], str]:
    recording.take_down(context, submit=_tandem_submit(context))
    ring, numbers = _bare_submit(bare.REPLAY), itertools.count()

    def submit(_number: int) -> str:
        name = ring(next(numbers))
        replay.write(name)
        return name

    return submit


def _tandem_submit(context: Context) -> Callable[[int], str]:
    dataset = make_dataset()
    # The file was read and copied before: that work is the disk's, and bare Celery has none of it.
    intake.locate = _given(Path(dataset.path))
    intake.take_dataset = _given(dataset)

    def submit(_number: int) -> str:
        request = TrainingSubmission(dataset=dataset.path, force=True)
        return tasks.training.submit(request, context).job.id

    return submit


def _given(value: Any) -> Callable[..., Any]:
    def give(*_arguments: Any, **_options: Any) -> Any:
        return value

    return give


def _measure(contenders: Sequence[Contender], *, client: Redis, num_jobs: int, repeats: int) -> None:
    for contender in contenders:  # connections are opened, code is loaded
        _paced(contender, num_jobs=NUM_WARM_UP, client=client, sample=Sample())
    for repeat in range(repeats):
        for contender in contenders:
            contender.paced.append(Sample())
        for block, first in enumerate(range(0, num_jobs, BLOCK), start=repeat):
            for contender in contenders if block % 2 == 0 else reversed(contenders):
                size = min(BLOCK, num_jobs - first)
                _paced(contender, num_jobs=size, client=client, sample=contender.paced[-1])
        for contender in contenders if repeat % 2 == 0 else reversed(contenders):
            _burst(contender, num_jobs=num_jobs, client=client)


def _paced(contender: Contender, *, num_jobs: int, client: Redis, sample: Sample) -> None:
    client.config_set("appendfsync", contender.fsync)
    draw = random.Random(0)
    for number in range(num_jobs):
        began = time.monotonic()
        name = contender.submit(number)
        started_name, started = _next_start(contender, client=client)
        if started_name != name:
            raise SystemExit(f"{contender.name}: {started_name} started, {name} was submitted.")
        sample.seconds.append(started - began)
        idle = _await(contender, idle_list(contender.name), client=client)
        sample.num_jobs += 1
        sample.num_seconds += float(idle) - began
        time.sleep(draw.uniform(*IDLE_SECONDS))


def _burst(contender: Contender, *, num_jobs: int, client: Redis) -> None:
    client.config_set("appendfsync", contender.fsync)
    began = time.monotonic()
    submitted: dict[str, float] = {}
    for number in range(num_jobs):
        before = time.monotonic()
        submitted[contender.submit(number)] = before
    enqueued = time.monotonic()
    starts = [_next_start(contender, client=client) for _ in range(num_jobs)]
    for _ in range(num_jobs):
        idle = float(_await(contender, idle_list(contender.name), client=client))
    seconds = [started - submitted[name] for name, started in starts]
    contender.burst.append(Sample(seconds, num_jobs, enqueued - began))
    contender.drained.append(Sample(seconds, num_jobs, idle - began))


def _next_start(contender: Contender, *, client: Redis) -> tuple[str, float]:
    name, started = _await(contender, started_list(contender.name), client=client).split()
    return name, float(started)


def _await(contender: Contender, name: str, *, client: Redis) -> str:
    answer: Any = client.blpop([name], timeout=WAIT_SECONDS)
    if answer is None:
        raise SystemExit(f"{contender.name}: nothing came in {name} within {WAIT_SECONDS} s.")
    return str(answer[1].decode())


def _print(contenders: Sequence[Contender], *, database: str, num_finished: int) -> None:
    samples = contenders[0].paced
    num = sum(len(sample.seconds) for sample in samples)
    print(f"\n{database}, {num_finished} finished jobs; n = {num} jobs a row, {len(samples)} repeats")
    print(
        f"{'':7}{'to start, ms':>14}{'p50':>9}{'p99':>9}   jobs a second: median (lowest to highest repeat)"
    )
    for contender in contenders:
        paced, burst = _times(contender.paced), _times(contender.burst)
        print(f"{contender.name:7}{'paced':>14}{paced}   one after another {_rates(contender.paced)}")
        print(f"{'':7}{'burst':>14}{burst}   submitted {_rates(contender.burst)}", end=", ")
        print(f"done {_rates(contender.drained)}")
    *theirs, ours = contenders
    kept = [contender for contender in theirs if contender.name in bare.CLAIMS]
    for one, other in [*((one, theirs[0]) for one in kept), *((ours, other) for other in theirs)]:
        for regime in ("paced", "burst"):
            pair = (getattr(other, regime), getattr(one, regime))
            ratios = ", ".join(_ratio(*pair, share=share) for share in (P50, P99))
            print(f"{one.name} / {other.name}, {regime}: {ratios}", flush=True)


def _times(samples: Sequence[Sample]) -> str:
    whole = _together(samples)
    return f"{whole.quantile(P50):9.1f}{whole.quantile(P99):9.1f}"


def _rates(samples: Sequence[Sample]) -> str:
    rates = [sample.num_jobs / sample.num_seconds for sample in samples]
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def _ratio(one: Sequence[Sample], other: Sequence[Sample], *, share: float) -> str:
    whole = _together(other).quantile(share) / _together(one).quantile(share)
    each = [theirs.quantile(share) / ours.quantile(share) for ours, theirs in zip(one, other, strict=True)]
    return f"p{100 * share:.0f} {whole:.2f}x ({min(each):.2f} to {max(each):.2f})"


def _together(samples: Sequence[Sample]) -> Sample:
    return Sample([second for sample in samples for second in sample.seconds])


@contextmanager
def _process(
    command: Sequence[str], *, log: Any, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
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
