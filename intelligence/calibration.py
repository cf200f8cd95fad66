"""The calibrator: is an answer given with confidence 0.8 right eight times in ten, and which map makes it so.

Maps are fitted on one half of the answers and judged on the other. One is applied only if it lowers the
Brier score of rows that it never saw by more than chance would; else the model's own confidence stands. The
Brier score is proper and finite: a certain mistake costs 1 in it and not infinity, as in the logarithmic
score, so that no single row decides. What cannot be measured is `unknown`, with no map.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

import numpy as np

from intelligence.maps import IDENTITY, Answers, apply, fit_isotonic, fit_temperature
from intelligence.reliability import measure
from intelligence.resampling import Floats
from intelligence.statistics import t_95
from registry.calibrations import (
    Calibration,
    CalibrationMap,
    CalibrationOutcome,
    CalibrationRequest,
    CalibrationRules,
    ConfidenceSample,
    MapKind,
    MapTrial,
    has_temperatures,
)
from registry.records import Estimate


def calibrate(request: CalibrationRequest, *, now: datetime, rng: np.random.Generator) -> Calibration:
    """Judge an evaluation's confidences; `rng` draws the bootstrap.

    Answers that were cut off are left out and counted. The halves depend on the rows alone, so that they are
    the same for every checkpoint on a suite, and each has its share of every difficulty.
    """
    finished = sorted(
        (sample for sample in request.samples if sample.is_finished), key=lambda sample: sample.row_id
    )
    fitting, judging = split(finished)
    problem = _why_unknown(request, halves=(fitting, judging))
    if problem:
        return unknown(request, reason=problem, now=now)
    trials = _trials(_answers(fitting), judged=_answers(judging), rules=request.rules)
    chosen = _choose(trials, judged=_answers(judging))
    return _known(request, trials=trials, chosen=chosen, halves=(fitting, judging), now=now, rng=rng)


def unknown(request: CalibrationRequest, *, reason: str, now: datetime) -> Calibration:
    """The calibration that says why there is none."""
    num_unfinished = sum(not sample.is_finished and not sample.problem for sample in request.samples)
    return Calibration(
        id=request.calibration_id,
        checkpoint_id=request.checkpoint_id,
        suite_id=request.suite_id,
        evaluation_id=request.evaluation_id,
        outcome=CalibrationOutcome.UNKNOWN,
        reason=reason,
        num_examples=len(request.samples),
        num_unfinished=num_unfinished,
        settings=request.settings,
        decided_at=now,
    )


def split(
    samples: Sequence[ConfidenceSample],
) -> tuple[list[ConfidenceSample], list[ConfidenceSample]]:
    """Two halves: within a difficulty every other row, in the order of the hashes of their ids."""
    groups: dict[str, list[ConfidenceSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.difficulty].append(sample)
    halves: tuple[list[ConfidenceSample], list[ConfidenceSample]] = ([], [])
    place = 0
    for _, group in sorted(groups.items()):
        for sample in sorted(group, key=lambda one: sha256(f"calibration:{one.row_id}".encode()).digest()):
            halves[place % 2].append(sample)
            place += 1
    return halves


def _why_unknown(
    request: CalibrationRequest, *, halves: tuple[list[ConfidenceSample], list[ConfidenceSample]]
) -> str:
    samples, rules = request.samples, request.rules
    unclear = [sample for sample in samples if sample.problem or sample.confidence is None]
    if unclear:
        cause = unclear[0].problem or "no finite probability"
        return f"The confidence of {len(unclear)} of {len(samples)} answers is unknown ({cause})."
    if len({sample.row_id for sample in samples}) != len(samples):
        return "A row was answered twice in one evaluation."
    num_finished = len(halves[0]) + len(halves[1])
    if num_finished < rules.min_examples:
        return f"{num_finished} finished answers are too few; {rules.min_examples} are needed."
    for half in halves:
        num_right = sum(sample.is_correct for sample in half)
        if min(num_right, len(half) - num_right) < rules.min_of_each:
            return (
                f"{num_right} of {len(half)} answers of one half are right: "
                f"{rules.min_of_each} right and as many wrong ones are needed in each."
            )
    return ""


def _answers(samples: Sequence[ConfidenceSample]) -> Answers:
    return Answers(
        confidence=np.array([sample.confidence for sample in samples], dtype=np.float64),
        correct=np.array([sample.is_correct for sample in samples], dtype=np.float64),
        tempered=np.array([sample.tempered_logprobs for sample in samples], dtype=np.float64)
        if all(has_temperatures(sample) for sample in samples)
        else None,
    )


def _trials(fitted: Answers, *, judged: Answers, rules: CalibrationRules) -> tuple[MapTrial, ...]:
    maps = [fit_temperature(fitted) if judged.tempered is not None else None, fit_isotonic(fitted)]
    return tuple(_trial(one, judged=judged, rules=rules) for one in maps if one is not None)


def _trial(one: CalibrationMap, *, judged: Answers, rules: CalibrationRules) -> MapTrial:
    gains = _costs(IDENTITY, judged=judged) - _costs(one, judged=judged)
    mean, error = float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))
    half = t_95(len(gains) - 1) * error
    return MapTrial(
        map=one,
        improvement=Estimate(value=mean, low=mean - half, high=mean + half, num_samples=len(gains)),
        is_significant=mean > 0 and mean > rules.significance * error,
    )


def _choose(trials: Sequence[MapTrial], *, judged: Answers) -> CalibrationMap:
    """Of the significant maps the best; the temperature if it is within one standard error of it.

    One parameter over many, where rows cannot tell them apart (Breiman et al. 1984, section 3.4.3).
    """
    useful = sorted(
        (trial for trial in trials if trial.is_significant), key=lambda trial: -trial.improvement.value
    )
    if not useful:
        return IDENTITY
    best = useful[0].map
    for trial in useful[1:]:
        losses = _costs(trial.map, judged=judged) - _costs(best, judged=judged)
        error = float(losses.std(ddof=1)) / math.sqrt(len(losses))
        if trial.map.kind is MapKind.TEMPERATURE and float(losses.mean()) <= error:
            return trial.map
    return best


def _costs(one: CalibrationMap, *, judged: Answers) -> Floats:
    """Brier score of each answer (Brier 1950, Monthly Weather Review 78, 1)."""
    result: Floats = (apply(one, answers=judged) - judged.correct) ** 2
    return result


def _known(
    request: CalibrationRequest,
    *,
    trials: tuple[MapTrial, ...],
    chosen: CalibrationMap,
    halves: tuple[list[ConfidenceSample], list[ConfidenceSample]],
    now: datetime,
    rng: np.random.Generator,
) -> Calibration:
    judged, everything = _answers(halves[1]), _answers([*halves[0], *halves[1]])
    num = request.rules.num_resamples
    before = measure(judged.confidence, correct=judged.correct, num_resamples=num, rng=rng)
    is_mapped = chosen.kind is not MapKind.IDENTITY
    after = measure(apply(chosen, answers=judged), correct=judged.correct, num_resamples=num, rng=rng)
    return Calibration.model_validate(
        unknown(request, reason=_reason(trials, chosen=chosen), now=now).model_dump()
        | {
            "outcome": CalibrationOutcome.MAPPED if is_mapped else CalibrationOutcome.UNNEEDED,
            "num_held_out": len(judged),
            "map": chosen,
            "trials": trials,
            "overall": measure(everything.confidence, correct=everything.correct, num_resamples=num, rng=rng),
            "before": before,
            "after": after if is_mapped else before,
        }
    )


def _reason(trials: Sequence[MapTrial], *, chosen: CalibrationMap) -> str:
    told = "; ".join(
        f"{trial.map.kind} {trial.improvement.value:+.4f} "
        f"(95 % interval {trial.improvement.low:+.4f} to {trial.improvement.high:+.4f})"
        for trial in trials
    )
    num = trials[0].improvement.num_samples
    how = f"the {chosen.kind} map is applied" if chosen.kind is not MapKind.IDENTITY else "no map is applied"
    return f"Lower Brier score on {num} held-out rows by {told}: {how}."
