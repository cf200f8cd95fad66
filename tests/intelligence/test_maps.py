"""Maps keep to probabilities and order, and the record applies them as the room does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from intelligence.errors import InvalidSample
from intelligence.maps import IDENTITY, Answers, apply, fit_isotonic, fit_temperature, tempered_logprobs
from intelligence.testing import planted_answers
from registry.calibrations import CalibrationMap, MapKind
from registry.records import TEMPERATURES, Estimate

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)
TWO = Estimate(value=2.0, low=1.5, high=2.5, num_samples=10)


def answers(rows: list[tuple[float, bool]]) -> Answers:
    confidence, correct = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return Answers(confidence, correct=correct, tempered=None)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_an_isotonic_map_never_falls_and_keeps_the_mean(rows: list[tuple[float, bool]]) -> None:
    data = answers(rows)
    found = fit_isotonic(data)
    grid = np.linspace(0, 1, 201)
    values = apply(found, answers=Answers(grid, correct=grid, tempered=None))
    assert (np.diff(values) >= -1e-12).all()
    assert ((values >= 0) & (values <= 1)).all()
    assert apply(found, answers=data).mean() == pytest.approx(data.correct.mean())
    assert [found.apply(float(one)) for one in grid] == pytest.approx(values.tolist(), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_no_other_rising_step_is_nearer_to_the_answers(rows: list[tuple[float, bool]]) -> None:
    data = answers(rows)
    cost = ((apply(fit_isotonic(data), answers=data) - data.correct) ** 2).sum()
    for threshold in np.unique(data.confidence):
        above = data.confidence >= threshold
        step = np.where(
            above, data.correct[above].mean(), data.correct[~above].mean() if (~above).any() else 0
        )
        if not (~above).any() or step[above][0] >= step[~above][0]:
            assert cost <= ((step - data.correct) ** 2).sum() + 1e-9


def test_between_the_kept_temperatures_the_probability_is_interpolated() -> None:
    samples = planted_answers(300, scale=1.0, seed=0)
    table = np.array([sample.tempered_logprobs for sample in samples])
    for place, temperature in enumerate(TEMPERATURES):
        assert tempered_logprobs(table, temperature=temperature) == pytest.approx(table[:, place], abs=1e-9)
    scaled = np.array([one.tempered_logprobs for one in planted_answers(300, scale=1.2, seed=0)])
    exact = np.exp(scaled[:, TEMPERATURES.index(1.0)])
    assert np.exp(tempered_logprobs(table, temperature=1 / 1.2)) == pytest.approx(exact, abs=5e-3)


def test_a_temperature_beyond_those_kept_is_not_guessed() -> None:
    samples = planted_answers(500, scale=1.0, seed=0)
    data = Answers(
        np.array([sample.confidence for sample in samples]),
        correct=np.zeros(500),
        tempered=np.array([sample.tempered_logprobs for sample in samples]),
    )
    assert fit_temperature(data) is None  # all wrong: ever hotter is ever better


def test_a_temperature_cannot_be_applied_to_answers_that_kept_none() -> None:
    how = CalibrationMap(kind=MapKind.TEMPERATURE, temperature=TWO, num_fitted=10)
    with pytest.raises(InvalidSample, match="other temperatures are not known"):
        apply(how, answers=answers([(0.5, True)]))
    assert how.apply(0.5) is None
    assert fit_temperature(answers([(0.5, True)])) is None


def test_the_identity_changes_nothing() -> None:
    data = answers([(0.3, True), (0.9, False)])
    assert apply(IDENTITY, answers=data).tolist() == [0.3, 0.9]
    assert IDENTITY.apply(0.3) == 0.3


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "isotonic", "knots": [(0.1, float("nan"))]},
        {"kind": "isotonic", "knots": [(0.1, 0.5), (0.2, 0.4)]},
        {"kind": "isotonic", "knots": [(0.2, 0.4), (0.2, 0.5)]},
        {"kind": "isotonic", "knots": [(0.1, 1.5)]},
        {"kind": "isotonic", "knots": []},
        {"kind": "identity", "knots": [(0.1, 0.5)]},
        {"kind": "temperature"},
        {"kind": "temperature", "temperature": TWO.model_dump() | {"value": float("nan")}},
        {"kind": "temperature", "temperature": TWO.model_dump() | {"value": 0.0}},
        {"kind": "identity", "temperature": TWO.model_dump()},
    ],
)
def test_a_map_that_is_none_cannot_be_made(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CalibrationMap.model_validate({"num_fitted": 10} | fields)
