"""Verdicts on planted faults: small real models, ruined on purpose, judged by the monitor and a naive rule.

Half of the models are twins: the same training with its last part in another order, so harmless as far as
their truth says so. Into each twin a fault is planted (weight noise, a ruined layer, a forgotten tag, a wrong
tokenizer, truncated training), sized from +5 % to +100 %. Into every second one tag alone is made to be
forgotten, a slice of 10 % of the suite, so far that its loss a little more than doubles: much more, and the
whole would show it. Into some it is forgotten by less. Some have a weight that is not a number.

Truth is the relative increase of the mean loss over a pool of rows, six times as large as the suite and
without a row in common with it, against the baseline's on the same rows. The monitor sees the suite alone, by
`inference/evaluate.py` from a saved model directory, and judges with its default limits.

- caught: the verdict is not `pass`. A checkpoint that is watched is not served either; the tables have both
  columns, not accepted and `regressed` alone.
- false alarm: the verdict is not `pass` although the truth is at most +5 %, over all the models for which
  that is so, whatever was planted. A model of which a slice truly lost more than the slice limit is not
  harmless and is counted apart.
- a regression of a slice only: the tag's true loss at least doubled, that of the whole rose by 15 % at most.
- the naive rule, on the same answers: 50 random rows of the candidate against 50 other random rows of the
  baseline, flagged where the quotient of the means exceeds 1.15. As in the original a comparison with NaN is
  false, and so it passes.

The suite is sized by its power: to catch +20 % with 99 % the standard error of the increase must be at most
(20 - 15) / 2.33 = 2.1 points, to alarm at +5 % in 1 % at most (15 - 5) / 2.33 = 4.3. The spread of the paired
differences is printed with the number of rows that follows from it.

    python -m benchmarks.verdicts [--models 200] [--suite-rows 1800] [--processes 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.support import faults
from benchmarks.support.counted import NOT_A_NUMBER, SLICE, TWIN, Result, report
from benchmarks.support.faults import KINDS, Measure, Planted, Start
from benchmarks.support.lab import (
    BRANCH,
    BRANCH_STEPS,
    DIFFICULTIES,
    TAGS,
    TRUNK,
    TRUNK_STEPS,
    WHOLE_STEPS,
    Floats,
    Lab,
    Weights,
)
from inference.evaluate import evaluate_rows
from inference.model import load_model
from intelligence.regression import judge
from intelligence.statistics import standard_error
from registry.messages import Evidence, RegressionLimits, RegressionRequest
from registry.records import ExampleResult, GenerationSettings
from registry.states import Outcome

SETTINGS = GenerationSettings(max_new_tokens=7)
LIMITS = RegressionLimits()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SMALLEST, LARGEST = 0.05, 1.00
# Of a tag that is to be forgotten, and of one that is to be forgotten by less.
FORGOTTEN_SLICES, SMALLER_SLICES = (1.05, 1.35), (0.50, 1.00)
FORGOTTEN_EVERY, SMALLER_EVERY, NOT_A_NUMBER_EVERY = 2, 10, 20
CUT_EVERY = 15
NAIVE_ROWS = 50


@dataclass(frozen=True)
class Task:
    """One model to make and to judge."""

    number: int
    kind: str
    target: float = 0.0


class Bench:
    """A process's own lab, the baseline's answers and its losses."""

    def __init__(self, directory: Path) -> None:
        torch.set_num_threads(1)
        self.lab = Lab(directory)
        kept = torch.load(directory / "baseline.pt")
        self.trunk, self.baseline = kept["trunk"], kept["baseline"]
        self.lab.use(self.baseline)
        self.pool_losses = self.lab.losses(self.lab.pool)
        self.tuning_losses = self.lab.losses(self.lab.tuning)
        self.answers = self.answer(Planted(self.baseline))
        self.earlier = tuple((self._increase(weights), weights) for weights in kept["earlier"])

    def answer(self, planted: Planted) -> tuple[ExampleResult, ...]:
        """Through the product's door: a saved directory, loaded and evaluated on the suite."""
        with tempfile.TemporaryDirectory(dir=self.lab.directory) as name:
            directory = faults.save(self.lab, planted, directory=Path(name))
            loaded = load_model(directory, device="cpu", num_threads=1, verify_files=False)
            return evaluate_rows(loaded, self.lab.suite, settings=SETTINGS)

    def start(self, number: int) -> Start:
        """A twin: the baseline's trunk, then a branch in an order of its own."""
        self.lab.use(self.trunk)
        for _ in self.lab.train(hyperparameters=BRANCH, num_steps=BRANCH_STEPS, seed=1000 + number):
            pass
        return Start(weights=self.lab.weights(), earlier=self.earlier)

    def measure(self, *, tag: str | None = None) -> Measure:
        """The increase on the rows that faults are sized on; of one tag, if named."""
        rows = self.lab.tuning
        places = np.ones(len(rows.tags), dtype=bool) if tag is None else rows.tags == tag
        before = self.tuning_losses[places].mean()
        return lambda ids: float(self.lab.losses(rows, ids=ids)[places].mean() / before - 1)

    def _increase(self, weights: Weights) -> float:
        self.lab.use(weights)
        return self.measure()(None)


_bench: Bench | None = None


def main() -> int:
    """Make, judge and count; 1 where a goal was missed."""
    options = _options()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _prepare(directory, num_suite_rows=options.suite_rows, seed=options.seed)
        print(f"baseline trained in {time.monotonic() - started:.0f} s", flush=True)
        results = _run(_tasks(options.models), directory=directory, num_processes=options.processes)
    is_good = report(results, kinds=tuple(KINDS), limits=LIMITS, num_suite_rows=options.suite_rows)
    print(f"{len(results)} models in {time.monotonic() - started:.0f} s on {options.processes} processes")
    return 0 if is_good else 1


def _prepare(directory: Path, *, num_suite_rows: int, seed: int) -> None:
    """Train the baseline: trunk and branch; learn to forget each tag."""
    torch.set_num_threads(1)
    lab = Lab.make(directory, num_suite_rows=num_suite_rows, seed=seed)
    steps = lab.train(hyperparameters=TRUNK, num_steps=TRUNK_STEPS, seed=seed, schedule_steps=WHOLE_STEPS)
    cuts = (step for step in steps if step > TRUNK_STEPS // 2 and step % CUT_EVERY == 0)
    earlier = [lab.weights() for _ in cuts]
    trunk = lab.weights()
    baseline = _typical_branch(lab, trunk, seed=seed)
    kept = {"trunk": trunk, "baseline": baseline, "earlier": earlier}
    torch.save(kept, directory / "baseline.pt")
    lab.use(baseline)
    for number, tag in enumerate(TAGS):
        faults.learn_to_forget(lab, tag=tag, seed=seed + number)


def _typical_branch(lab: Lab, trunk: Weights, *, seed: int) -> Weights:
    """Of five branches the one of median loss: a lucky baseline would make harmless twins look bad."""
    found = []
    for number in range(5):
        lab.use(trunk)
        for _ in lab.train(hyperparameters=BRANCH, num_steps=BRANCH_STEPS, seed=seed + number):
            pass
        found.append((float(lab.losses(lab.tuning).mean()), number, lab.weights()))
    return sorted(found)[len(found) // 2][2]


def _tasks(num_models: int) -> list[list[Task]]:
    """A twin and what is planted in it, by number, so that a twin is trained once."""
    kinds, sizes = list(KINDS), _sizes(num_models, low=SMALLEST, high=LARGEST)
    slices = {
        **_slice_sizes(range(0, num_models, FORGOTTEN_EVERY), bounds=FORGOTTEN_SLICES),
        **_slice_sizes(range(1, num_models, SMALLER_EVERY), bounds=SMALLER_SLICES),
    }
    groups = []
    for number in range(num_models):
        group = [Task(number, TWIN), Task(number, kinds[number % len(kinds)], target=sizes[number])]
        if number in slices:
            group.append(Task(number, SLICE, target=slices[number]))
        if number % NOT_A_NUMBER_EVERY == 0:
            group.append(Task(number, NOT_A_NUMBER))
        groups.append(group)
    return groups


def _slice_sizes(numbers: range, *, bounds: tuple[float, float]) -> dict[int, float]:
    sizes = _sizes(len(numbers), low=bounds[0], high=bounds[1])
    return dict(zip(numbers, sizes, strict=True))


def _sizes(num: int, *, low: float, high: float) -> list[float]:
    """Evenly spread on a logarithmic scale, in no order."""
    sizes = np.geomspace(low, high, num) if num > 1 else np.array([high])
    return [float(size) for size in np.random.default_rng(num).permutation(sizes)]


def _run(groups: Sequence[list[Task]], *, directory: Path, num_processes: int) -> list[Result]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=partial(_open, directory)
    ) as pool:
        results: list[Result] = []
        for number, found in enumerate(pool.map(_judge_group, groups), start=1):
            results += found
            if number % 20 == 0:
                print(f"{number} of {len(groups)} twins and what was planted in them", flush=True)
    return results


def _open(directory: Path) -> None:
    global _bench
    _bench = Bench(directory)


def _judge_group(group: Sequence[Task]) -> list[Result]:
    assert _bench is not None
    start = _bench.start(group[0].number)
    return [_judge_one(_bench, task, start=start) for task in group]


def _judge_one(bench: Bench, task: Task, *, start: Start) -> Result:
    started = time.process_time()
    planted = _plant(bench, task, start=start)
    answers = bench.answer(planted)
    bench.lab.use(planted.weights)
    ids = faults.swapped_ids(bench.lab, swaps=planted.swaps)
    is_finite = task.kind != NOT_A_NUMBER
    losses = (
        bench.lab.losses(bench.lab.pool, ids=ids) if is_finite else np.full(len(bench.pool_losses), np.nan)
    )
    before, slice_truths = bench.pool_losses, _slice_truths(bench, losses)
    return Result(
        kind=task.kind,
        target=task.target,
        truth=float(losses.mean() / before.mean() - 1),
        truth_error=standard_error(losses - before) / float(before.mean()) if is_finite else float("nan"),
        slice_truths=slice_truths,
        tag_truth=slice_truths[_tag_of(task)] if task.kind == SLICE else float("nan"),
        outcome=_verdict(bench, answers, seed=task.number),
        is_naive_alarm=_naive(bench, answers, seed=task.number),
        spread=_spread(bench, answers) if is_finite else float("nan"),
        cpu_seconds=time.process_time() - started,
    )


def _plant(bench: Bench, task: Task, *, start: Start) -> Planted:
    if task.kind == TWIN:
        return Planted(start.weights)
    if task.kind == NOT_A_NUMBER:
        ruined = {name: value.clone() for name, value in start.weights.items()}
        next(iter(ruined.values()))[0, 0] = float("nan")
        return Planted(ruined)
    tag = _tag_of(task) if task.kind == SLICE else None
    kind = faults.forgotten_tag if task.kind == SLICE else KINDS[task.kind]
    seed = TAGS.index(tag) if tag is not None else task.number // len(KINDS)
    return kind(bench.lab, start=start, measure=bench.measure(tag=tag), target=task.target, seed=seed)


def _tag_of(task: Task) -> str:
    return TAGS[task.number // FORGOTTEN_EVERY % len(TAGS)]


def _verdict(bench: Bench, answers: tuple[ExampleResult, ...], *, seed: int) -> Outcome:
    request = RegressionRequest(
        verdict_id="verdict",
        candidate=_evidence("candidate", answers),
        baseline=_evidence("baseline", bench.answers),
        limits=LIMITS,
    )
    return judge(request, now=NOW, rng=np.random.default_rng(seed)).outcome


def _evidence(name: str, answers: tuple[ExampleResult, ...]) -> Evidence:
    return Evidence(checkpoint_id=name, evaluation_id=name, suite_id="suite", examples=answers)


def _naive(bench: Bench, answers: tuple[ExampleResult, ...], *, seed: int) -> bool:
    """True where it says: regression."""
    rng = np.random.default_rng([seed, 1])
    candidate, baseline = (
        np.mean([_loss_of(side[place]) for place in rng.choice(len(side), NAIVE_ROWS, replace=False)])
        for side in (answers, bench.answers)
    )
    return bool(candidate / baseline > 1 + LIMITS.max_loss_increase)


def _loss_of(answer: ExampleResult) -> float:
    return float("nan") if answer.loss is None else answer.loss


def _spread(bench: Bench, answers: tuple[ExampleResult, ...]) -> float:
    """Standard deviation of the paired differences, in baseline losses."""
    mine, other = (np.array([_loss_of(answer) for answer in side]) for side in (answers, bench.answers))
    return float((mine - other).std(ddof=1) / other.mean())


def _slice_truths(bench: Bench, losses: Floats) -> dict[str, float]:
    rows, before = bench.lab.pool, bench.pool_losses
    slices = {tag: rows.tags == tag for tag in TAGS} | {
        name: rows.difficulties == name for name in DIFFICULTIES
    }
    return {
        name: float(
            (losses[places].mean() - before[places].mean())
            / max(before[places].mean(), LIMITS.min_baseline_loss)
        )
        for name, places in slices.items()
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=int, default=200, help="twins, and as many planted faults")
    parser.add_argument("--suite-rows", type=int, default=1800)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
