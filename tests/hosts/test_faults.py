"""Faults between two hosts: after each, a whole release is current and served, and a second run finishes.

`python -m pytest tests/hosts -m hosts` with SEEDS=10 runs each with ten seeds, SEED=7 with that one alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from deploy.target import LocalTarget
from inference.testing import seal
from inference.tiny import build_tiny_model
from registry.files import sha256_file
from registry.manifests import verify
from tasks.testing import wait_for
from tests.hosts.faults import FAULTS, SENDING_FAULTS, Fault
from tests.hosts.lab import Lab
from tests.hosts.narration import STAGES

pytestmark = [pytest.mark.integration, pytest.mark.hosts, pytest.mark.timeout(400)]

NUM_SEEDS = int(os.environ.get("SEEDS") or 1)
SEEDS = [int(os.environ["SEED"])] if os.environ.get("SEED") else list(range(1, NUM_SEEDS + 1))
CASES = [pytest.param(fault, seed, id=f"{fault.name}-{seed}") for seed in SEEDS for fault in FAULTS]
SENDING_CASES = [
    pytest.param(fault, seed, id=f"{fault.name}-{seed}") for seed in SEEDS for fault in SENDING_FAULTS
]
PADDING_BYTES = 12_000_000
# So that three seconds of a transfer lie between its ends, for a fault to strike.
BANDWIDTH_KIB = "4000"
END_SECONDS = 240.0
LATEST_SECONDS = 0.3  # after a stage began


class Dispatcher:
    """Makes releases and pushes them, each with a generation and a token of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.generation = 0
        self._models = [build_tiny_model(lab.root / f"tiny-{seed}", seed=seed) for seed in (1, 2)]

    def make(self, *, seed: int) -> Path:
        """A checkpoint that never was before."""
        path = self.lab.root / f"checkpoint-{time.monotonic_ns()}"
        shutil.copytree(self._models[seed % 2], path)
        (path / "notes.dat").write_bytes(random.Random(seed).randbytes(PADDING_BYTES))
        return seal(path)

    def start(self, source: Path, **extra: str) -> tuple[subprocess.Popen[bytes], Path, str]:
        """A pusher at work, its log, and the start of its release's id."""
        self.generation += 1
        number = str(self.generation)
        log = f"pusher-{number}.log"
        command = (sys.executable, "-m", "tests.hosts.pusher", str(source), number, number)
        settings = {"TANDEM_DEPLOY__BANDWIDTH_KIB": BANDWIDTH_KIB, **extra}
        process = self.lab.popen("train", *command, log=log, extra=settings)
        return process, self.lab.root / log, f"r{self.generation:06d}-"

    def start_sending(self, source: Path, **extra: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A candidate on its way, and its log."""
        number = time.monotonic_ns()
        log, suite = f"sender-{number}.log", self.lab.root / f"suite-{number}.jsonl"
        suite.write_text(json.dumps({"prompt": f"Say {number}.", "completion": "yes"}) + "\n")
        command = (sys.executable, "-m", "tests.hosts.sender", str(source), str(suite))
        settings = {"TANDEM_DEPLOY__BANDWIDTH_KIB": BANDWIDTH_KIB, **extra}
        return self.lab.popen("train", *command, log=log, extra=settings), self.lab.root / log

    def finish(self, source: Path) -> None:
        """Push once more, undisturbed; it must be current and served."""
        process, log, release = self.start(source)
        assert process.wait(timeout=END_SECONDS) == 0, log.read_text()
        current = self.lab.current()
        assert current is not None
        assert current.startswith(release)
        assert self.lab.answer() == (200, current)

    def mend(self) -> None:
        """What the sync after a fault does first: then what is current is served."""
        fence = str(self.generation)
        mended = self.lab.run("train", sys.executable, "-m", "tests.hosts.mender", fence)
        assert mended.returncode == 0, mended.stderr
        check_standing(self.lab, is_settled=True)


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dispatcher]:
    lab = Lab(tmp_path_factory.mktemp("faults"), with_train=False)
    lab.start()
    dispatcher = Dispatcher(lab)
    try:
        dispatcher.finish(dispatcher.make(seed=0))
        yield dispatcher
    finally:
        lab.stop()


@pytest.mark.parametrize(("fault", "seed"), CASES)
def test_a_whole_release_is_served_whatever_happens(dispatcher: Dispatcher, fault: Fault, seed: int) -> None:
    lab, dice = dispatcher.lab, random.Random(f"{fault.name}-{seed}")
    source = dispatcher.make(seed=seed)
    fault.before(lab, dice)
    try:
        process, log, release = dispatcher.start(source, **fault.extra(lab))
        reach(fault.stage(seed), log=log, process=process)
        time.sleep(dice.uniform(0, LATEST_SECONDS))
        fault.strike(lab, dice)
        code = process.wait(timeout=END_SECONDS)
    finally:
        fault.heal(lab)
    words = log.read_text()
    if fault.must_fail:
        assert code == 1
        assert re.search(fault.must_fail, words), words
    if fault.must_work:
        assert code == 0, words
        assert str(lab.current()).startswith(release)
    assert "Traceback" not in words
    check_standing(lab)
    dispatcher.mend()
    dispatcher.finish(source)
    check_standing(lab, is_settled=True)
    shutil.rmtree(source)


@pytest.mark.parametrize(("fault", "seed"), SENDING_CASES)
def test_a_candidate_comes_whole_or_not_at_all(dispatcher: Dispatcher, fault: Fault, seed: int) -> None:
    lab, dice = dispatcher.lab, random.Random(f"sending-{fault.name}-{seed}")
    source = dispatcher.make(seed=seed)
    weights = source / "model.safetensors"
    content = change_weights(weights, seed=seed)
    seal(source)
    fault.before(lab, dice)
    try:
        process, log = dispatcher.start_sending(source, **fault.extra(lab))
        reach(fault.stage(seed), log=log, process=process, num_before=1)  # the suite goes first
        time.sleep(dice.uniform(0, LATEST_SECONDS))
        fault.strike(lab, dice)
        code = process.wait(timeout=END_SECONDS)
    finally:
        fault.heal(lab)
    words = log.read_text()
    assert "Traceback" not in words
    if fault.must_fail:
        assert code == 1
        assert re.search(fault.must_fail, words), words
    if fault.must_work:
        assert code == 0, words
    cached = lab.intel_home / "models" / "cache" / content
    if cached.exists():
        verify(cached, with_state=False)
    again, log = dispatcher.start_sending(source)
    assert again.wait(timeout=END_SECONDS) == 0, log.read_text()
    assert verify(cached, with_state=False).weights_sha256 == content
    assert not list(cached.rglob("*.py"))
    check_standing(lab)
    for path in (source, cached):
        shutil.rmtree(path)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_deployers_the_newer_one_stays(dispatcher: Dispatcher, seed: int) -> None:
    """The second begins while the first is at a stage, another one with each seed."""
    older, newer = (dispatcher.make(seed=seed + 31 + one) for one in range(2))
    first, first_log, _ = dispatcher.start(older)
    reach(list(STAGES)[seed % len(STAGES)], log=first_log, process=first)
    second, second_log, release = dispatcher.start(newer)
    codes = [process.wait(timeout=END_SECONDS) for process in (first, second)]
    words = [log.read_text() for log in (first_log, second_log)]
    assert codes[1] == 0, words[1]
    assert codes[0] == 0 or "Another deployer took over on" in words[0], words[0]
    assert str(dispatcher.lab.current()).startswith(release)
    check_standing(dispatcher.lab, is_settled=True)
    dispatcher.finish(older)
    for source in (older, newer):
        shutil.rmtree(source)


def test_without_rsync_on_one_side_files_go_by_sftp(dispatcher: Dispatcher) -> None:
    lab = dispatcher.lab
    source = dispatcher.make(seed=41)
    bare = lab.root / "bin"
    bare.mkdir()
    for name in ("ip", "unshare", "sh", "hostname"):
        (bare / name).symlink_to(str(shutil.which(name)))
    process, log, _ = dispatcher.start(source, PATH=str(bare))
    assert process.wait(timeout=END_SECONDS) == 1
    assert "There is no rsync on this host, and SFTP failed too" in log.read_text()
    check_standing(lab)
    with lab.data_key_by_sftp():
        process, log, release = dispatcher.start(source, PATH=str(bare))
        assert process.wait(timeout=END_SECONDS) == 0, log.read_text()
    assert str(lab.current()).startswith(release)
    check_standing(lab)


def test_the_two_keys_open_nothing_else(dispatcher: Dispatcher) -> None:
    lab = dispatcher.lab
    for key, command in (
        ("data", "cat /etc/passwd"),
        ("data", "rsync --server --sender . /"),
        ("command", "id"),
    ):
        said = lab.ssh(key, command)
        assert "root:" not in said
        assert "uid=" not in said
    planted = lab.ssh("data", "rsync --server -logDtpre.iLsfxCIvu . ../releases/evil")
    assert not (lab.releases / "evil").exists(), planted


def reach(stage: str, *, log: Path, process: subprocess.Popen[bytes], num_before: int = 0) -> None:
    """Wait until a stage begins for so many and one time, or all is over."""
    deadline = time.monotonic() + END_SECONDS
    while log.read_text().count(STAGES[stage]) <= num_before and process.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


def change_weights(path: Path, *, seed: int) -> str:
    """Other weights in the same form; their sha256."""
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + seed + 1
    save_file(tensors, path, metadata={"format": "pt"})
    return sha256_file(path)


def check_standing(lab: Lab, *, is_settled: bool = False) -> None:
    """`current` is whole, the server answers with a whole release, and the lock is free.

    A deployer that was killed or cut off may leave a server on a release that is not current; settled, it
    answers with that one.
    """
    current = lab.current()
    assert current is not None
    target = LocalTarget(lab.releases)
    target.verify(current)
    wait_for(lambda: lab.answer()[0] == 200, seconds=90, message="the server answers")
    served = lab.answer()[1]
    assert served is not None
    target.verify(served)
    assert not is_settled or served == current
    assert not [path.name for path in lab.releases.rglob("*.py")]

    def is_free() -> bool:
        with (lab.intel_home / "models" / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    wait_for(is_free, seconds=30, message="the lock is free")
