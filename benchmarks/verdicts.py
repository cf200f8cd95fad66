"""Verdicts on planted faults: small real models, ruined on purpose, judged by the monitor and by a naive rule.

Half of the models are twins: the same training with its last part in another order, so harmless as far as
their truth says so. Into each twin a fault is planted (weight noise, a ruined layer, a forgotten tag, a wrong
tokenizer, truncated training), sized from +5 % to +100 %. A quarter as many have one tag forgotten and the
rest kept: a slice of 10 % of the suite. Some have a weight that is not a number.

Truth is the relative increase of the mean loss over a pool of rows that is ten times as large as the suite and
has no row in common with it, paired with the baseline's. The monitor sees the suite alone, by
`inference/evaluate.py` from a saved model directory, and judges with its default limits.

- caught: the verdict is not `pass`. A checkpoint that is watched is not deployed either; the table has both
  columns, and `regressed` alone.
- false alarm: the verdict is not `pass` although the truth is at most +5 %, over all the models for which that
  is so, whatever was planted. A model with a slice that truly lost more than the slice limit is not harmless and
  is counted apart.
- the naive rule, on the same answers: 50 random rows of the candidate against 50 other random rows of the
  baseline, flagged where the quotient of the means exceeds 1.15. As in the original a comparison with NaN is
  false, and so it passes.

The suite is sized by its power: to catch +20 % with 99 % the standard error of the increase must be at most
(20 - 15) / 2.33 = 2.1 points, to alarm at +5 % in 1 % at most (15 - 5) / 2.33 = 4.3. The spread of the paired
differences that this needs is printed, and the number of rows that follows.

    python -m benchmarks.verdicts [--models 200] [--suite-rows 1200] [--processes 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.support import faults
from benchmarks.support.faults import KINDS, Measure, Planted, Start
from benchmarks.support.lab import BRANCH, BRANCH_STEPS, DIFFICULTIES, TAGS, TRUNK, TRUNK_STEPS, WHOLE_STEPS, Floats, Lab, Weights
from inference.evaluate import evaluate_rows
from inference.model import load_model
from intelligence.regression import judge
from intelligence.statistics import standard_error, wilson_interval
from registry.messages import Evidence, RegressionLimits, RegressionRequest
from registry.records import ExampleResult, GenerationSettings
from registry.states import Outcome

SETTINGS = GenerationSettings(max_new_tokens=7)
LIMITS = RegressionLimits()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SMALLEST, LARGEST = 0.05, 1.00
SMALLEST_SLICE, LARGEST_SLICE = 0.25, 2.50
FORGOTTEN = 1.00  # a tag is forgotten whose loss is twice what it was
CUT_EVERY = 15
NAIVE_ROWS = 50
TWIN, SLICE, NOT_A_NUMBER = "harmless twin", "slice only", "not a number"


@dataclass(frozen=True)
class Task:
    """One model to make and to judge."""

    number: int
    kind: str
    target: float = 0.0


@dataclass(frozen=True)
class Result:
    """What is true of a model, and what was said of it. `truth` is NaN where the model answers nothing.

    `tag_truth` is that of the tag which alone was to be forgotten; NaN for every other kind.
    """

    kind: str
    target: float
    truth: float
    truth_error: float
    slice_truths: dict[str, float]
    tag_truth: float
    outcome: Outcome
    is_naive_alarm: bool
    spread: float
    cpu_seconds: float

    @property
    def worst_slice(self) -> float:
        """The largest true increase of a slice."""
        return max(self.slice_truths.values(), default=float("nan"))


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
    is_good = _report(results, num_suite_rows=options.suite_rows)
    print(f"{len(results)} models in {time.monotonic() - started:.0f} s on {options.processes} processes")
    return 0 if is_good else 1


def _prepare(directory: Path, *, num_suite_rows: int, seed: int) -> None:
    """Train the baseline: trunk and branch; learn to forget each tag."""
    torch.set_num_threads(1)
    lab = Lab.make(directory, num_suite_rows=num_suite_rows, seed=seed)
    earlier = []
    for step in lab.train(
        hyperparameters=TRUNK, num_steps=TRUNK_STEPS, seed=seed, schedule_steps=WHOLE_STEPS
    ):
        if step > TRUNK_STEPS // 2 and step % CUT_EVERY == 0:
            earlier.append(lab.weights())
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
    slice_sizes = _sizes(max(1, num_models // 4), low=SMALLEST_SLICE, high=LARGEST_SLICE)
    groups = []
    for number in range(num_models):
        group = [Task(number, TWIN), Task(number, kinds[number % len(kinds)], target=sizes[number])]
        if number % 4 == 0 and number // 4 < len(slice_sizes):
            group.append(Task(number, SLICE, target=slice_sizes[number // 4]))
        if number % 20 == 0:
            group.append(Task(number, NOT_A_NUMBER))
        groups.append(group)
    return groups


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
    return TAGS[task.number // 4 % len(TAGS)]


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


def _report(results: Sequence[Result], *, num_suite_rows: int) -> bool:
    known = [one for one in results if np.isfinite(one.truth)]
    planted = [one for one in known if one.kind in KINDS]
    print(f"\n{'':<44} {'n':>4}  {'not accepted':>22} {'regressed':>22} {'naive rule':>22}")
    rows: list[tuple[str, list[Result]]] = []
    for low, high in ((0.05, 0.15), (0.15, 0.20), (0.20, 0.30), (0.30, 0.50), (0.50, np.inf)):
        rows.append(
            (f"planted, truth {low:+.0%} to {high:+.0%}", [one for one in planted if low < one.truth <= high])
        )
    caught = [one for one in planted if one.truth >= 0.20]
    rows += [(f"{kind}, truth +20 % or more", [one for one in caught if one.kind == kind]) for kind in KINDS]
    slices = [one for one in known if one.kind == SLICE]
    rows.append(("slice only, any size", slices))
    for low, high in ((0.25, 0.5), (0.5, 1.0), (1.0, np.inf)):
        rows.append(
            (
                f"slice only, its truth {low:+.0%} to {high:+.0%}",
                [one for one in slices if low < one.tag_truth <= high],
            )
        )
    only = [
        one for one in slices if one.truth <= LIMITS.max_loss_increase and one.worst_slice >= SMALLEST_SLICE
    ]
    harmless = [one for one in known if one.truth <= 0.05]
    calm = [one for one in harmless if one.worst_slice <= LIMITS.max_slice_loss_increase]
    rows += [
        ("twins, whatever their truth", [one for one in known if one.kind == TWIN]),
        ("truth at most +5 %, whatever its slices", harmless),
        ("not a number", [one for one in results if one.kind == NOT_A_NUMBER]),
    ]
    goals = [
        ("GOAL >= 99 %: truth +20 % or more", caught),
        (f"GOAL >= 95 %: a tag +{FORGOTTEN:.0%} or more, suite within +15 %", only),
        ("GOAL <= 1 %: truth <= +5 %, no slice beyond", calm),
    ]
    for name, found in [*rows, *goals]:
        print(_line(name, found))
    _print_power(known, num_suite_rows=num_suite_rows)
    return _share(caught) >= 0.99 and _share(only) >= 0.95 and _share(calm) <= 0.01


def _line(name: str, found: Sequence[Result]) -> str:
    if not found:
        return f"{name:<44} {0:4d}"
    counts = (
        sum(one.outcome is not Outcome.PASS for one in found),
        sum(one.outcome is Outcome.REGRESSED for one in found),
        sum(one.is_naive_alarm for one in found),
    )
    return f"{name:<44} {len(found):4d}  " + " ".join(_told(count, num=len(found)) for count in counts)


def _told(count: int, *, num: int) -> str:
    share = wilson_interval(count, num_trials=num)
    return f"{share.value:7.1%} [{share.low:6.1%},{share.high:6.1%}]"


def _share(found: Iterable[Result]) -> float:
    outcomes = [one.outcome is not Outcome.PASS for one in found]
    return sum(outcomes) / len(outcomes) if outcomes else float("nan")


def _print_power(known: Sequence[Result], *, num_suite_rows: int) -> None:
    near = sorted(one.spread for one in known if 0.10 <= one.truth <= 0.40)
    errors = [one.truth_error for one in known if 0.10 <= one.truth <= 0.40]
    if not near:
        return
    spread = float(np.quantile(near, 0.9))
    error = (0.20 - LIMITS.max_loss_increase) / 2.326
    print(
        f"\nPaired differences spread by {np.median(near):.2f} baseline losses (median of {len(near)} models with a "
        f"truth of +10 % to +40 %; 90 % below {spread:.2f}). A standard error of {error:.1%} needs "
        f"{(spread / error) ** 2:.0f} rows; the suite has {num_suite_rows}. The truth itself is known to "
        f"+-{1.96 * max(errors):.1%} at worst."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=int, default=200, help="twins, and as many planted faults")
    parser.add_argument("--suite-rows", type=int, default=1200)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
