"""A stack that faults are thrown at: the parts that train, a base model, and a way to look inside."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from redis import Redis

from config.settings import Settings, load_settings
from inference.tiny import build_tiny_model
from registry.files import sha256_file
from registry.messages import CheckpointImport
from registry.records import Lease, TrainingJob
from registry.states import JobState, is_final
from registry.store import Registry, Transaction, utc_now
from tasks.testing import fresh_environment, left_behind, wait_for
from tests.faults import checker
from tests.faults.checker import Submitted
from tests.faults.supervise import PARTS, UNLOGGED
from trainer.core.trace import read_trace
from workers.app import TandemCelery
from workers.celery_settings import celery_settings
from workers.imports import import_model
from workers.stack.control import UP_MARKER
from workers.stack.state import read_state

ROOT = Path(__file__).parents[2]
NUM_ROWS = 70
ANSWER_SECONDS = 60.0
START_SECONDS = 120.0
END_SECONDS = 120.0
SETTLE_SECONDS = 12.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TRAINING = {
    "TANDEM_TRAINING__RECORD_ROWS": "true",
    "TANDEM_TRAINING__NUM_CHECKPOINTS": "3",
    "TANDEM_TRAINING__STOP_GRACE_SECONDS": "20",
    # About one row a step, so that a fault lands between two of many steps.
    "TANDEM_TRAINING__HYPERPARAMETERS": json.dumps({"tokens_per_batch": 260, "learning_rate": 0.001}),
}
DISK_MEGABYTES = 400


@dataclass
class FaultStack:
    """One stack in a home of its own.

    Its flavour: plain, clock (can jump), disk (that of the models can fill), home (all of it lies on one disk
    that can fill) or unlogged (its Redis keeps nothing on disk).
    """

    home: Path
    flavour: str = "plain"
    clock_offset_seconds: float = 0.0
    submitted: list[Submitted] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Everything up, a base model registered."""
        self.small_disk.mkdir(parents=True)
        if self._has_small_disk:
            size = f"size={DISK_MEGABYTES}m"
            run_as_root("mount", "-t", "tmpfs", "-o", size, "tandem-faults", str(self.small_disk))
        self.environment = {**fresh_environment(self.home), **TRAINING}
        if self.flavour == "unlogged":
            self.environment[UNLOGGED] = "1"
        self.settings = self._load_settings()
        self.settings.paths.prepare()
        self.registry = Registry(self.settings.database_url, clock=self._now)
        self.celery = TandemCelery("faults")
        self.celery.config_from_object(celery_settings(self.settings))
        if self.flavour == "clock":
            self.environment |= self._fake_clock()
        try:
            self._start_parts()
        except BaseException:
            self.stop()
            raise
        model = build_tiny_model(self.home / "tiny", seed=1)
        request = CheckpointImport(path=str(model), origin="base")
        import_model(request, settings=self.settings, registry=self.registry)

    def stop(self) -> list[str]:
        """Everything down; what was left behind."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=END_SECONDS)
        self.celery.close()
        left = left_behind(self.home)
        for process in home_processes(self.home):
            process.kill()
        if self._has_small_disk:
            self._keep_what_explains()
            run_as_root("umount", "--lazy", str(self.small_disk))
        return left

    @property
    def small_disk(self) -> Path:
        """Where the disk is mounted that can fill."""
        return self.home if self.flavour == "home" else self.home / "models"

    def submit(self, name: str, *, random: random.Random) -> list[Submitted]:
        """Two files: one through `training.submit`, answered; one laid into the inbox."""
        asked = self._write(f"{name}-asked", random=random, directory=self.home / "data")
        answer = self.celery.send_task("training.submit", kwargs={"dataset": str(asked)})
        answer.get(timeout=ANSWER_SECONDS)
        laid = self._write(f"{name}-laid", random=random, directory=self.home / "data")
        files = [submission(asked), submission(laid)]
        now = self.registry.clock().timestamp()
        os.utime(laid, (now, now))
        laid.rename(self.settings.paths.inbox / laid.name)
        return files

    @contextlib.contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A look into the registry, at the stack's own time."""
        with self.registry.reading() as tx:
            yield tx

    def job(self, submitted: Submitted) -> TrainingJob | None:
        """The job of a file, where it became one."""
        with self.reading() as tx:
            return checker.job_of(tx, submitted)

    def num_steps_taken(self, submitted: Submitted) -> int:
        """The newest step in the trace of a file's job; 0 where it has not begun."""
        job = self.job(submitted)
        lines = [] if job is None else read_trace(self.settings.paths.checkpoints / job.id)
        return lines[-1].step if lines else 0

    def running(self) -> TrainingJob | None:
        """The job that trains now, or None."""
        with self.reading() as tx:
            jobs = tx.find(TrainingJob, state=JobState.RUNNING)
        return jobs[0] if jobs else None

    def wait_until_ended(self, submitted: list[Submitted]) -> None:
        """Until each file is a job that ended, no job's lease is held, and no trainer runs."""

        def ended() -> bool:
            jobs = [self.job(one) for one in submitted]
            return all(job is not None and is_final(job.state) for job in jobs)

        with contextlib.suppress(TimeoutError):  # the checker says it better
            wait_for(ended, seconds=END_SECONDS, message="the jobs end")
        self.come_to_rest()

    def come_to_rest(self) -> list[str]:
        """What is unsettled whenever one looks: a loop's tick takes its lease for a moment."""
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self.unsettled(), seconds=SETTLE_SECONDS, message="the stack is quiet")
            return []
        return self.unsettled()

    def unsettled(self) -> list[str]:
        """Processes that should be gone, parts that are not back, and leases that are not given back."""
        with self.reading() as tx:
            held = [lease.id for lease in tx.find(Lease) if not lease.is_expired(now=tx.now)]
        missing = [f"{name} is not up" for name in PARTS if self.part(name) is None]
        return [*held, *missing, *self.strays()]

    def strays(self) -> list[str]:
        """Trainers, and processes of this home that belong to no part of the stack."""
        assert self.process is not None
        family = {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}
        trainers = {process.pid for process in self.trainers()}
        return [
            f"process {process.pid} is left: {' '.join(process.cmdline())[:150]}"
            for process in home_processes(self.home)
            if process.pid != self.process.pid
            and (process.pid not in family or process.pid in trainers)
            and is_there(process)
        ]

    def trainers(self) -> list[psutil.Process]:
        """The trainer children, in the order of their start."""
        found = [process for process in home_processes(self.home) if "trainer" in command_of(process)]
        return sorted(found, key=lambda process: process.pid)

    def wait_for_trainer(self) -> psutil.Process | None:
        """A living trainer; None where none came before every job had ended."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            trainers = self.trainers()
            if trainers:
                return trainers[-1]
            time.sleep(0.05)
        return None

    def part(self, name: str) -> psutil.Process | None:
        """The process that plays a part, or None while it is being restarted."""
        state = read_state(self.settings.paths.run)
        pids = {} if state is None else {part.name: part.pid for part in state.parts}
        try:
            process = psutil.Process(pids[name])
            return process if process.status() != psutil.STATUS_ZOMBIE else None
        except (KeyError, psutil.Error):
            return None

    def redis(self) -> Redis:
        """A client of the stack's Redis."""
        return Redis.from_url(self.settings.redis_url, socket_timeout=5)

    def spawn(self, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """A further process of the stack: a second worker, a second beat."""
        with (self.settings.paths.logs / log).open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "workers.app", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def set_clock(self, offset_seconds: float) -> None:
        """The wall clock of every part jumps, its monotonic one does not."""
        self.clock_offset_seconds = offset_seconds
        mode = "r+b" if self._clock_file.exists() else "wb"  # the parts look at this very file
        with self._clock_file.open(mode) as stream:
            stream.write(struct.pack("=d", offset_seconds))

    def forget(self, submitted: list[Submitted]) -> None:
        """Remove the weights that no later job starts from, so that a hundred seeds fit on a disk."""
        jobs = [job for one in submitted if (job := self.job(one)) is not None]
        newest = max((job for job in jobs if job.finished_at), key=lambda job: str(job.finished_at))
        for directory in self.settings.paths.checkpoints.iterdir():
            if directory.name != newest.id:
                shutil.rmtree(directory)

    def _write(self, name: str, *, random: random.Random, directory: Path) -> Path:
        directory.mkdir(exist_ok=True)
        path = directory / f"{name}.jsonl"
        words = ["".join(random.choices(LETTERS, k=random.randint(90, 110))) for _ in range(NUM_ROWS)]
        rows = [{"prompt": word, "completion": word[::-1]} for word in words]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def _start_parts(self) -> None:
        self.settings.paths.logs.mkdir(exist_ok=True)
        with (self.settings.paths.logs / "stack.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.supervise"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        marker = self.settings.paths.run / UP_MARKER
        wait_for(
            lambda: marker.exists() or not is_running(self.process), seconds=START_SECONDS, message="it is up"
        )
        assert marker.exists(), (self.settings.paths.logs / "stack.log").read_text()

    def _load_settings(self) -> Settings:
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            return load_settings()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _fake_clock(self) -> dict[str, str]:
        self.set_clock(0.0)
        library = self.home / "clock.so"
        source = str(Path(__file__).with_name("clock.c"))
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), source], check=True, timeout=60)
        return {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._clock_file)}

    @property
    def _has_small_disk(self) -> bool:
        return self.flavour in ("disk", "home")

    def _keep_what_explains(self) -> None:
        """What lies on the small disk is gone with it."""
        kept = self.home.with_name("kept")
        shutil.copytree(self.settings.paths.logs, kept / "logs", dirs_exist_ok=True)
        for path in self.home.glob("tandem.db*"):
            shutil.copy(path, kept)

    @property
    def _clock_file(self) -> Path:
        return self.home / "clock"

    def _now(self) -> datetime:
        return utc_now() + timedelta(seconds=self.clock_offset_seconds)


def submission(path: Path) -> Submitted:
    """What the checker looks for."""
    return Submitted(path.stem, sha256_file(path), NUM_ROWS)


def home_processes(home: Path) -> list[psutil.Process]:
    """Living processes that work in a home, this one left out."""
    return [process for process in psutil.process_iter() if _works_in(process, home=home)]


def command_of(process: psutil.Process) -> list[str]:
    """Its arguments; none where it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_there(process: psutil.Process) -> bool:
    """True while it lives."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_running(process: subprocess.Popen[bytes] | None) -> bool:
    """True while our own child lives."""
    return process is not None and process.poll() is None


def run_as_root(*command: str) -> None:
    """A command of the system."""
    subprocess.run(command, check=True, capture_output=True, timeout=20)


def _works_in(process: psutil.Process, *, home: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("TANDEM_HOME") == str(home)
    except psutil.Error:
        return False
