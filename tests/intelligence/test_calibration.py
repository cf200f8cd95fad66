"""Maps are fitted on one half, judged on the other, and applied only where that is worth it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intelligence.calibration import calibrate, split
from intelligence.testing import planted_answers
from registry.calibrations import (
    Calibration,
    CalibrationOutcome,
    CalibrationRequest,
    CalibrationRules,
    ConfidenceSample,
    MapKind,
)
from registry.records import GenerationSettings
from registry.testing import START

RULES = CalibrationRules(num_resamples=200)


def request_for(samples: list[ConfidenceSample], **changes: Any) -> CalibrationRequest:
    return CalibrationRequest(
        calibration_id="cal-1",
        checkpoint_id="ckpt-1",
        suite_id="suite-1",
        evaluation_id="eval-1",
        settings=GenerationSettings(),
        samples=tuple(samples),
        rules=RULES.changed(**changes),
    )


def judged(samples: list[ConfidenceSample], **changes: Any) -> Calibration:
    return calibrate(request_for(samples, **changes), now=START, rng=np.random.default_rng(0))


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
def test_a_planted_temperature_is_found_and_applied(scale: float) -> None:
    found = judged(planted_answers(4000, scale=scale, seed=1))
    assert found.outcome is CalibrationOutcome.MAPPED
    assert found.map is not None
    assert found.map.kind is MapKind.TEMPERATURE
    assert found.map.temperature is not None
    assert found.map.temperature.value == pytest.approx(scale, rel=0.05)
    assert found.map.temperature.low <= scale <= found.map.temperature.high
    assert found.before is not None
    assert found.after is not None
    assert found.after.ece.value < found.before.ece.value / 3
    assert (found.map.num_fitted, found.num_held_out, found.after.ece.num_samples) == (2000, 2000, 2000)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_calibrated_gets_no_map(seed: int) -> None:
    found = judged(planted_answers(1000, scale=1.0, seed=seed))
    assert found.outcome is CalibrationOutcome.UNNEEDED
    assert found.map is not None
    assert found.map.kind is MapKind.IDENTITY
    assert found.after == found.before


def test_without_temperatures_the_isotonic_map_mends_what_it_can() -> None:
    samples = [sample.changed(tempered_logprobs=()) for sample in planted_answers(3000, scale=3.0, seed=2)]
    found = judged(samples)
    assert found.map is not None
    assert found.map.kind is MapKind.ISOTONIC


def test_the_order_of_the_rows_does_not_matter() -> None:
    samples = planted_answers(400, scale=2.0, seed=3)
    assert judged(samples) == judged(samples[::-1])


Spoil = Callable[[list[ConfidenceSample]], list[ConfidenceSample]]


def all_with(**changes: Any) -> Spoil:
    return lambda samples: [sample.changed(**changes) for sample in samples]


def first_with(**changes: Any) -> Spoil:
    return lambda samples: [samples[0].changed(**changes), *samples[1:]]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda samples: samples[:99], "99 finished answers are too few; 100 are needed"),
        (lambda samples: [], "0 finished answers are too few"),
        (all_with(is_correct=True), "100 of 100 answers of one half are right"),
        (all_with(is_correct=False), "0 of 100 answers of one half are right"),
        (all_with(is_finished=False), "0 finished answers are too few"),
        (first_with(confidence=None), "confidence of 1 of 200 answers is unknown (no finite probability)"),
        (first_with(problem="weights hold NaN"), "is unknown (weights hold NaN)"),
        (lambda samples: [*samples, samples[0]], "answered twice"),
    ],
)
def test_what_cannot_be_measured_is_unknown_with_the_reason_and_without_a_map(
    spoil: Spoil, reason: str
) -> None:
    found = judged(spoil(planted_answers(200, scale=1.0, seed=4)))
    assert found.outcome is CalibrationOutcome.UNKNOWN
    assert reason in found.reason
    assert (found.map, found.overall, found.trials) == (None, None, ())


def test_answers_that_were_cut_off_are_left_out_and_counted() -> None:
    samples = planted_answers(300, scale=1.0, seed=5)
    cut = [sample.changed(is_finished=False, confidence=1.0) for sample in samples[:60]]
    found = judged([*cut, *samples[60:]])
    assert (found.num_examples, found.num_unfinished) == (300, 60)
    assert found.overall is not None
    assert found.overall.ece.num_samples == 240


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from("abc")), unique_by=lambda row: row[0]))
def test_the_halves_share_every_difficulty_and_hold_every_row_once(rows: list[tuple[int, str]]) -> None:
    samples = [
        ConfidenceSample(row_id=f"r{name}", difficulty=level, is_correct=True, is_finished=True)
        for name, level in rows
    ]
    first, second = split(samples)
    assert sorted([*first, *second], key=str) == sorted(samples, key=str)
    for level in "abc":
        sizes = [sum(sample.difficulty == level for sample in half) for half in (first, second)]
        assert abs(sizes[0] - sizes[1]) <= 1
    assert split(samples[::-1]) == (first, second)
