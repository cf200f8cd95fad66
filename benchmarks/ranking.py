"""Planted orders: how often the ranking finds them, beside a ranking on rows of each checkpoint's own.

Twelve checkpoints whose true loss and accuracy are known answer a suite drawn anew each time. A row is harder
or easier for all of them alike, as real rows are. The rival scores each checkpoint on other rows of the same
number, and sorts. Reported:

- of a planted order: Kendall's tau between it and the found one; the true lead of the best over the next in
  standard errors of the paired difference; how often the best comes first, over all draws of the suite and
  over those in which the first was found to lead by more than two standard errors.
- the same for one that leads eleven equals, by the size of its true lead.
- of each suite on which the first leads by more than two standard errors: the share of bootstrap draws of its
  rows in which the truly best has the highest score.

    python -m benchmarks.ranking [--draws 200] [--rows 400]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from intelligence.ranking import Candidate, rank
from intelligence.scores import RankingWeights
from intelligence.statistics import wilson_interval
from intelligence.summary import summarise
from registry.records import Checkpoint, Estimate, Evaluation, ExampleResult, GenerationSettings, Ranking
from registry.states import CheckpointState, EvaluationState

Floats = NDArray[np.float64]
NUM_CHECKPOINTS = 12
START = datetime(2026, 1, 1, tzinfo=UTC)
POPULATION = 200_000
NUM_REDRAWS = 200
WEIGHTS = RankingWeights()


def main() -> int:
    """Print both tables."""
    options = _options()
    rng = np.random.default_rng(options.seed)
    print(f"{NUM_CHECKPOINTS} checkpoints, {options.rows} rows a suite, {options.draws} draws of the suite")
    print("\nKendall's tau of the found order with the planted one, mean and 95 % of draws")
    for step in (0.4, 0.2, 0.1):
        _print_order(options, step=step, rng=rng)
    print("\nThe truly best has a lead; all others are equal, and older, so that a tie goes to one of them.")
    sure: list[Found] = []
    for num_errors in (0, 1, 2, 3, 4, 6):
        sure += _print_winner(options, num_errors=num_errors, rng=rng)
    _print_sure("  over all of these, found over 2 standard errors ahead", sure)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass(frozen=True)
class Found:
    """A ranking of one draw of the suite, and of the rows of that suite drawn again and again.

    `is_sure`: the first leads the next by more than two standard errors.
    """

    order: list[int]
    is_right: bool
    is_sure: bool
    share_right_redrawn: float


def _print_order(options: argparse.Namespace, *, step: float, rng: np.random.Generator) -> None:
    abilities = step * np.arange(NUM_CHECKPOINTS)
    ours = [_found(abilities, options=options, is_best_known=True, rng=rng) for _ in range(options.draws)]
    rivals = [_unpaired(abilities, num_rows=options.rows, rng=rng) for _ in range(options.draws)]
    taus = {
        "tandem": [_kendall_tau(one.order) for one in ours],
        "other rows": [_kendall_tau(order) for order in rivals],
    }
    told = []
    for name, values in taus.items():
        low, high = np.percentile(values, (2.5, 97.5))
        told.append(f"{name} {np.mean(values):.3f} ({low:.3f} to {high:.3f})")
    print(f"  each {step} logits above the one before:   {'   '.join(told)}")
    lead = _errors_of(abilities, num_rows=options.rows)
    share = wilson_interval(sum(one.is_right for one in ours), num_trials=len(ours))
    print(f"    the best leads by {lead:.1f} standard errors; it is first in {_told(share)}")
    _print_sure("    found over 2 standard errors ahead", [one for one in ours if one.is_sure])


def _print_winner(options: argparse.Namespace, *, num_errors: float, rng: np.random.Generator) -> list[Found]:
    """What was found in each draw whose first was found over 2 standard errors ahead."""
    abilities = np.ones(NUM_CHECKPOINTS)
    best = NUM_CHECKPOINTS - 1
    abilities[best] += _lead_of(num_errors, num_rows=options.rows) if num_errors else 0.0
    found = [
        _found(abilities, options=options, is_best_known=num_errors > 0, rng=rng)
        for _ in range(options.draws)
    ]
    rivals = [_unpaired(abilities, num_rows=options.rows, rng=rng) for _ in range(options.draws)]
    if num_errors:
        ours = wilson_interval(sum(one.is_right for one in found), num_trials=options.draws)
        theirs = wilson_interval(sum(order[0] == best for order in rivals), num_trials=options.draws)
        lead = f"lead of {num_errors:g} standard errors"
        print(f"  {lead}: the best is first in   tandem {_told(ours)}   other rows {_told(theirs)}")
    return [one for one in found if one.is_sure]


def _print_sure(what: str, sure: Sequence[Found]) -> None:
    if not sure:
        print(f"{what}: none")
        return
    share = wilson_interval(sum(one.is_right for one in sure), num_trials=len(sure))
    redrawn = np.mean([one.share_right_redrawn for one in sure])
    print(f"{what}: the first is truly the best in {_told(share)}, has the highest")
    print(f"      score in {redrawn:.1%} of {NUM_REDRAWS} bootstrap draws of each such suite's rows")


def _found(
    abilities: Floats, *, options: argparse.Namespace, is_best_known: bool, rng: np.random.Generator
) -> Found:
    """With all of them equal none is the best, so whoever is called so is wrong."""
    best = NUM_CHECKPOINTS - 1
    losses, correct = _answers(
        abilities,
        hardness=_rows(options.rows, rng=rng),
        noise=rng.random((options.rows, len(abilities))),
    )
    ranking = _ranked(losses, correct=correct, rng=rng)
    order = _order(ranking)
    redrawn = _redrawn_firsts(losses, correct=correct, rng=rng) if _is_sure(ranking) else np.array([])
    return Found(
        order=order,
        is_right=is_best_known and order[0] == best,
        is_sure=_is_sure(ranking),
        share_right_redrawn=float(np.mean(redrawn == best)) if is_best_known and len(redrawn) else 0.0,
    )


def _redrawn_firsts(losses: Floats, *, correct: Floats, rng: np.random.Generator) -> Floats:
    """Who has the highest score, for each bootstrap draw of the rows."""
    places = rng.integers(0, len(losses), (NUM_REDRAWS, len(losses)))
    scores = WEIGHTS.measured["loss"] / (1 + losses[places].mean(axis=1))
    scores += WEIGHTS.measured["accuracy"] * correct[places].mean(axis=1)
    return scores.argmax(axis=1).astype(np.float64)


def _is_sure(ranking: Ranking) -> bool:
    lead = ranking.entries[0].lead
    return lead is not None and lead.difference.value > 2 * lead.standard_error


def _told(share: Estimate) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, n = {share.num_samples})"


def _lead_of(num_errors: float, *, num_rows: int) -> float:
    """The lead in logits that makes a true difference of so many paired standard errors, by bisection."""
    low, high = 0.0, 5.0
    for _ in range(30):
        middle = (low + high) / 2
        is_enough = _errors_of(np.array([1.0, 1.0 + middle]), num_rows=num_rows) > num_errors
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def _errors_of(abilities: Floats, *, num_rows: int) -> float:
    """The true lead of the last over the one before it, in standard errors of their paired difference."""
    rng = np.random.default_rng(1)
    hardness, noise = _rows(POPULATION, rng=rng), rng.random((POPULATION, 2))
    losses, correct = _answers(abilities[-2:], hardness=hardness, noise=noise)
    scores = WEIGHTS.measured["loss"] / (1 + losses) + WEIGHTS.measured["accuracy"] * correct
    difference = scores[:, 1] - scores[:, 0]
    return float(difference.mean() / (difference.std() / np.sqrt(num_rows)))


def _rows(num_rows: int, *, rng: np.random.Generator) -> Floats:
    return rng.normal(1.0, 1.5, num_rows)


def _answers(abilities: Floats, *, hardness: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """Losses and correctness, shape (rows, checkpoints): one row is as hard for all (Rasch 1960)."""
    logits = abilities[None, :] - hardness[:, None]
    chance = 1 / (1 + np.exp(-logits))
    return -np.log(np.maximum(chance, 1e-12)), (noise < chance).astype(np.float64)


def _ranked(losses: Floats, *, correct: Floats, rng: np.random.Generator) -> Ranking:
    candidates = [
        _candidate(place, losses=losses[:, place], correct=correct[:, place])
        for place in range(losses.shape[1])
    ]
    return rank(
        candidates,
        weights=WEIGHTS,
        num_resamples=500,
        served_checkpoint_id=None,
        suite_id="suite",
        ranking_id="rank",
        evidence_sha256="",
        now=START,
        rng=rng,
    )


def _order(ranking: Ranking) -> list[int]:
    return [int(entry.checkpoint_id.rsplit("-", 1)[1]) for entry in ranking.entries]


def _unpaired(abilities: Floats, *, num_rows: int, rng: np.random.Generator) -> list[int]:
    scores = []
    for ability in abilities:
        losses, correct = _answers(
            np.array([ability]), hardness=_rows(num_rows, rng=rng), noise=rng.random((num_rows, 1))
        )
        scores.append(float(WEIGHTS.total(losses.mean(), correct.mean())))
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def _candidate(place: int, *, losses: Floats, correct: Floats) -> Candidate:
    examples = tuple(
        ExampleResult(
            row_id=f"row-{row:06}",
            difficulty="easy",
            expected="a",
            answer="a" if is_correct else "b",
            is_correct=bool(is_correct),
            loss=float(loss),
            num_answer_tokens=1,
            confidence=None,
            finish_reason="stop",
        )
        for row, (loss, is_correct) in enumerate(zip(losses, correct, strict=True))
    )
    checkpoint = Checkpoint(
        id=f"ckpt-{place}",
        state=CheckpointState.ACCEPTED,
        origin="trained",
        path="",
        weights_sha256="",
        created_at=START + timedelta(hours=place),
    )
    evaluation = Evaluation(
        id=f"eval-{place}",
        checkpoint_id=checkpoint.id,
        suite_id="suite",
        state=EvaluationState.ANSWERED,
        settings=GenerationSettings(),
        summary=summarise(examples),
        requested_at=START,
    )
    return Candidate(checkpoint, evaluation, examples)


def _kendall_tau(order: Sequence[int]) -> float:
    """Against the planted order, best (the last planted) first (Kendall 1938, Biometrika 30, 81)."""
    num_pairs = len(order) * (len(order) - 1) // 2
    num_right = sum(
        order[first] > order[second] for first in range(len(order)) for second in range(first + 1, len(order))
    )
    return 2 * num_right / num_pairs - 1


if __name__ == "__main__":
    raise SystemExit(main())
