"""The table of faults. Each is a context: it strikes, heals if it must, and cleans up when the jobs ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
from redis import Redis
from redis.exceptions import RedisError

from registry.queue import resource_of
from registry.records import Lease, TrainingJob
from registry.states import is_final
from registry.store import BUSY_TIMEOUT_MS
from tasks.testing import wait_for
from tests.faults.stack import FaultStack, is_there, run_as_root
from workers.contracts import CONTROL, QUEUES, TRAINING_QUEUES

Strike = Callable[[FaultStack, random.Random], Iterator[None]]
Apply = Callable[[FaultStack, random.Random], AbstractContextManager[None]]

LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
time.sleep(float(sys.argv[2]))
connection.execute("COMMIT")
"""
FREE_BYTES = 200_000  # what a full disk has left: a line of a log, no checkpoint


@dataclass(frozen=True)
class Fault:
    """`may_cost` names the problems that a job may be charged with for it, and no others."""

    name: str
    apply: Apply
    may_cost: frozenset[str] = frozenset()
    flavour: str = "plain"


def kill_trainer(stack: FaultStack, random: random.Random) -> Iterator[None]:
    kill(catch_trainer(stack, random=random))
    yield


def kill_pool_child(stack: FaultStack, random: random.Random) -> Iterator[None]:
    trainer = catch_trainer(stack, random=random)
    kill(None if trainer is None else trainer.parent())
    yield


def kill_part(name: str, *, number: int = signal.SIGKILL) -> Strike:
    def strike(stack: FaultStack, random: random.Random) -> Iterator[None]:
        del random
        part = stack.part(name)
        if part is not None:
            part.send_signal(number)
        yield

    return strike


def kill_redis(stack: FaultStack, random: random.Random) -> Iterator[None]:
    del random
    kill(stack.part("redis"))
    yield


def kill_redis_and_lose_its_data(stack: FaultStack, random: random.Random) -> Iterator[None]:
    del random
    part = stack.part("redis")
    kill(part)
    if part is not None:
        part.wait(timeout=5)
    shutil.rmtree(stack.settings.paths.run / "redis" / "appendonlydir", ignore_errors=True)
    yield


def flush_redis(stack: FaultStack, random: random.Random) -> Iterator[None]:
    del random
    with stack.redis() as redis:
        redis.flushall()
    yield


def redis_without_memory(stack: FaultStack, random: random.Random) -> Iterator[None]:
    with stack.redis() as redis:
        redis.config_set("maxmemory", 1)
        try:
            time.sleep(random.uniform(4, 10))
        finally:
            redis.config_set("maxmemory", 0)
    yield


def partition(*, seconds: tuple[float, float]) -> Strike:
    """Packets to and from Redis vanish: no reset, no answer."""

    def strike(stack: FaultStack, random: random.Random) -> Iterator[None]:
        port = str(stack.settings.redis.port)
        sides = ("--dport", "--sport")
        rules = [["INPUT", "-i", "lo", "-p", "tcp", side, port, "-j", "DROP"] for side in sides]
        for rule in rules:
            run_as_root("iptables", "-w", "-I", *rule)
        try:
            time.sleep(random.uniform(*seconds))
        finally:
            for rule in rules:
                run_as_root("iptables", "-w", "-D", *rule)
        yield

    return strike


def duplicated_messages(stack: FaultStack, random: random.Random) -> Iterator[None]:
    """Bells again and again; and whatever comes by on the control queue, byte for byte, twice more."""
    running = stack.running()
    job_id = "job-nobody" if running is None else running.id
    for _ in range(5):
        queue = random.choice(TRAINING_QUEUES)
        stack.celery.send_task("training.run", kwargs={"job_id": job_id}, queue=queue)
    for name in ("safety.sweep", "inbox.scan"):
        stack.celery.send_task(name, queue=CONTROL)
    end, seen = time.monotonic() + 2, set[bytes]()
    with stack.redis() as redis:
        while time.monotonic() < end:
            new = {*redis.lrange(CONTROL, 0, -1), *taken_from(redis, queue=CONTROL)} - seen
            for message in new:
                redis.lpush(CONTROL, message, message)
            seen |= new
    yield


def reordered_messages(stack: FaultStack, random: random.Random) -> Iterator[None]:
    """Bells of every queue change places, also with those of other queues."""
    for job_id in ("job-first", "job-second"):
        for queue in TRAINING_QUEUES:
            stack.celery.send_task("training.run", kwargs={"job_id": job_id}, queue=queue)
    with stack.redis() as redis:
        messages = [message for queue in TRAINING_QUEUES for message in take_all(redis, queue=queue)]
        random.shuffle(messages)
        for message in messages:
            redis.lpush(random.choice(TRAINING_QUEUES), message)
    yield


def lost_messages(stack: FaultStack, random: random.Random) -> Iterator[None]:
    """What waits, and what a worker took and has not acknowledged, for a second long."""
    del random
    end = time.monotonic() + 1
    with stack.redis() as redis:
        while time.monotonic() < end:
            redis.delete(*QUEUES, "unacked", "unacked_index")
            time.sleep(0.02)
    yield


def two_beats(stack: FaultStack, random: random.Random) -> Iterator[None]:
    del random
    second = stack.spawn("beat", "--pidfile=", log="second-beat.log")
    try:
        yield
    finally:
        end(second)


def clock_jump(stack: FaultStack, random: random.Random) -> Iterator[None]:
    """The host's wall clock is set, forward or back, by seconds to an hour."""
    seconds = random.choice((-1, 1)) * 10 ** random.uniform(0.5, 3.55)
    stack.set_clock(stack.clock_offset_seconds + seconds)
    yield


def full_disk(stack: FaultStack, random: random.Random) -> Iterator[None]:
    """Full until an attempt met it, or for some seconds."""
    filler = stack.small_disk / "filler"
    try:
        fill(filler)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: num_problems(stack) > 0, seconds=random.uniform(4, 8), message="it is met")
    finally:
        filler.unlink()
    yield


def fill(filler: Path) -> None:
    """Take all but a little. The stack writes meanwhile: what was free a moment ago may be taken."""
    with filler.open("wb") as stream:
        size = free_bytes(filler)
        while size > 0:
            try:
                os.posix_fallocate(stream.fileno(), stream.seek(0, os.SEEK_END), size)
                size = free_bytes(filler)
            except OSError:
                size //= 2


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free - FREE_BYTES


def locked_database(stack: FaultStack, random: random.Random) -> Iterator[None]:
    seconds = BUSY_TIMEOUT_MS / 1000 + random.uniform(1, 4)
    database = str(stack.settings.paths.database)
    subprocess.run([sys.executable, "-c", LOCK, database, str(seconds)], check=True, timeout=90)
    yield


def frozen_holder(stack: FaultStack, random: random.Random) -> Iterator[None]:
    """The holder sleeps past its lease, another worker takes over, then the sleeper wakes and writes."""
    queues = ",".join(TRAINING_QUEUES)
    options = ("worker", "-n", "train2@%h", "-Q", queues, "-c", "1", "--without-gossip", "--without-mingle")
    second = stack.spawn(*options, log="train2.log")
    frozen: list[psutil.Process] = []
    try:
        trainer = catch_trainer(stack, random=random)
        if trainer is not None:
            job_id = Path(trainer.cmdline()[-1]).stem
            frozen = [trainer, trainer.parent()]
            for process in reversed(frozen):
                process.suspend()
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: token_of(stack, job_id) > 1, seconds=40, message="another takes over")
            time.sleep(random.uniform(0, 10))
        wake(frozen, random=random)
        frozen = []
        yield
    finally:
        wake(frozen, random=random)
        end(second)


def wake(frozen: list[psutil.Process], *, random: random.Random) -> None:
    """The trainer first, so that it has up to a second to do harm."""
    for process in frozen:
        with contextlib.suppress(psutil.Error):
            process.resume()
        time.sleep(random.uniform(0, 1))


def catch_trainer(stack: FaultStack, *, random: random.Random) -> psutil.Process | None:
    """The trainer of this moment, or of a random one soon; None where all jobs had ended."""
    trainers = stack.trainers()
    if trainers:
        return trainers[-1]
    trainer = stack.wait_for_trainer()
    time.sleep(random.uniform(0, 4))
    return trainer if trainer is not None and is_there(trainer) else None


def token_of(stack: FaultStack, job_id: str) -> int:
    """How often a job was claimed."""
    with stack.reading() as tx:
        return tx.get(Lease, resource_of(job_id)).token


def num_problems(stack: FaultStack) -> int:
    """Of all jobs that have not ended."""
    with stack.reading() as tx:
        return sum(len(job.problems) for job in tx.find(TrainingJob) if not is_final(job.state))


def kill(process: psutil.Process | None) -> None:
    """SIGKILL; nothing where it has just ended."""
    with contextlib.suppress(psutil.Error):
        if process is not None:
            process.kill()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask, then make sure: the whole group of a process that we started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def take_all(redis: Redis, *, queue: str) -> list[bytes]:
    """Every message of a queue, taken out of it."""
    with contextlib.suppress(RedisError):
        messages = redis.lrange(queue, 0, -1)
        redis.delete(queue)
        return list(messages)
    return []


def taken_from(redis: Redis, *, queue: str) -> set[bytes]:
    """What workers took from a queue and have not acknowledged, as it lay there."""
    found = [json.loads(value) for value in redis.hvals("unacked")]
    return {json.dumps(message).encode() for message, _exchange, key in found if key == queue}


def _fault(
    name: str,
    strike: Strike,
    *,
    may_cost: tuple[str, ...] = (),
    flavour: str = "plain",
) -> Fault:
    return Fault(name, contextlib.contextmanager(strike), frozenset(may_cost), flavour)


FAULTS = [
    _fault("trainer-killed", kill_trainer, may_cost=("killed",)),
    _fault("pool-child-killed", kill_pool_child, may_cost=("worker_lost",)),
    _fault("train-worker-killed", kill_part("train"), may_cost=("worker_lost",)),
    _fault("train-worker-terminated", kill_part("train", number=signal.SIGTERM)),
    _fault("control-worker-killed", kill_part("control")),
    _fault("beat-killed", kill_part("beat")),
    _fault("redis-killed", kill_redis),
    _fault("redis-data-lost", kill_redis_and_lose_its_data),
    _fault("redis-flushed", flush_redis),
    _fault("redis-without-memory", redis_without_memory),
    _fault("redis-cut-off", partition(seconds=(6, 10))),
    _fault("redis-cut-off-long", partition(seconds=(30, 30))),
    _fault("messages-duplicated", duplicated_messages),
    _fault("messages-reordered", reordered_messages),
    _fault("messages-lost", lost_messages),
    _fault("two-beats", two_beats),
    _fault("database-locked", locked_database, may_cost=("worker_lost",)),
    _fault("holder-frozen", frozen_holder, may_cost=("worker_lost",)),
    _fault("clock-jumped", clock_jump, may_cost=("worker_lost",), flavour="clock"),
    _fault("disk-full", full_disk, may_cost=("disk",), flavour="disk"),
    _fault("home-full", full_disk, may_cost=("disk", "worker_lost"), flavour="home"),
    _fault("redis-killed-unlogged", kill_redis, flavour="unlogged"),
]
