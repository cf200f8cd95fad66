"""The fault matrix: a fault at a seeded moment of two jobs' lives, then one judge of what came of them.

`make faults SEEDS=20` runs every fault with the seeds 1 to 20, `make faults FAULT=redis-killed SEED=7` one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
import traceback
from collections.abc import Iterator

import pytest

from tasks.testing import wait_for
from tests.faults import checker
from tests.faults.faults import FAULTS, Fault
from tests.faults.stack import END_SECONDS, NUM_ROWS, FaultStack

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(420)]

NUM_SEEDS = int(os.environ.get("SEEDS") or 1)
SEEDS = [int(os.environ["SEED"])] if os.environ.get("SEED") else list(range(1, NUM_SEEDS + 1))
# A third of the seeds strike before a job's first step: while it waits, is claimed, or loads its model.
EARLY_STEPS = NUM_ROWS // 2
EARLY_SECONDS = 6.0
FLAVOURS = ("plain", "clock", "disk", "home", "unlogged")
CASES = [
    pytest.param(fault, seed, id=f"{fault.name}-{seed}")
    for flavour in FLAVOURS
    for seed in SEEDS
    for fault in FAULTS
    if fault.flavour == flavour
]


class Keeper:
    """Keeps one stack for as long as it is healthy and of the right flavour."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._stack: FaultStack | None = None

    def get(self, flavour: str) -> FaultStack:
        """A stack of this flavour."""
        if self._stack is not None and self._stack.flavour == flavour:
            return self._stack
        assert self.drop() == []
        stack = FaultStack(self._factory.mktemp(f"faults-{flavour}") / "var", flavour)
        stack.start()
        self._stack = stack
        return stack

    def drop(self, *, is_kept: bool = False) -> list[str]:
        """Stop it; what it left behind. Its files stay where they can explain something."""
        stack, self._stack = self._stack, None
        if stack is None:
            return []
        left = stack.stop()
        if not left and not is_kept:
            shutil.rmtree(stack.home, ignore_errors=True)
        return left


@pytest.fixture(scope="session")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path_factory)
    yield keeper
    assert keeper.drop() == []


@pytest.mark.parametrize(("fault", "seed"), CASES)
def test_no_row_no_job_and_no_truth_is_lost(keeper: Keeper, fault: Fault, seed: int) -> None:
    if fault.flavour in ("clock", "disk", "home") or fault.name.startswith("redis-cut-off"):
        assert os.geteuid() == 0, f"{fault.name} needs root: it sets up a clock, a disk or a firewall rule"
    stack = keeper.get(fault.flavour)
    try:
        found = strike(stack, fault=fault, seed=seed)
    except Exception as error:
        found = [f"{type(error).__name__}: {error}", traceback.format_exc()]
    if found:
        left = keeper.drop(is_kept=True)
        remedy = f"again: make faults FAULT={fault.name} SEED={seed}   files: {stack.home}"
        pytest.fail("\n".join([f"{fault.name}, seed {seed}:", *found, *left, remedy]))


def strike(stack: FaultStack, *, fault: Fault, seed: int) -> list[str]:
    """Submit, wait, strike, wait for the end; what the checker finds."""
    dice = random.Random(f"{fault.name}:{seed}")
    submitted = stack.submit(f"{fault.name}-{seed}", random=dice)
    wait_for_moment(stack, submitted=submitted, dice=dice)
    before = [describe(stack, one) for one in submitted]
    began = time.monotonic()
    with fault.apply(stack, dice):
        struck_seconds = time.monotonic() - began
        stack.wait_until_ended(submitted)
    unsettled = stack.come_to_rest()
    with stack.reading() as tx:
        found = checker.check(tx, submitted=submitted, earlier=stack.submitted, may_cost=fault.may_cost)
    stack.submitted += submitted
    after = [describe(stack, one) for one in submitted]
    print(f"{fault.name} seed {seed}: {before} -> {after}")
    print(f"struck for {struck_seconds:.1f} s, over after {time.monotonic() - began:.1f} s")
    if not found and not unsettled:
        stack.forget(submitted)
    return [*found, *(f"not at rest: {one}" for one in unsettled)]


def wait_for_moment(stack: FaultStack, *, submitted: list[checker.Submitted], dice: random.Random) -> None:
    """A seeded step of a seeded job, or some seconds where that step is not a positive one."""
    (aim,) = dice.choices(submitted, weights=(3, 1))
    step = dice.randint(-EARLY_STEPS, NUM_ROWS)
    if step <= 0:
        time.sleep(dice.uniform(0, EARLY_SECONDS))
        return
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: stack.num_steps_taken(aim) >= step, seconds=END_SECONDS, message=f"step {step}")


def describe(stack: FaultStack, submitted: checker.Submitted) -> str:
    """Where a job stood."""
    job = stack.job(submitted)
    if job is None:
        return "no job"
    return f"{job.state} at step {stack.num_steps_taken(submitted)}, {job.attempts} bad"
