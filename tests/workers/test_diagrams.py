"""A reliability diagram is drawn twice over, whole, and only where something is known."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from intelligence.calibration import calibrate
from intelligence.testing import planted_answers
from registry.calibrations import Calibration, CalibrationOutcome, CalibrationRequest, CalibrationRules
from registry.records import GenerationSettings
from registry.testing import START, make_calibration
from workers import diagrams

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    request = CalibrationRequest(
        calibration_id="cal-1",
        checkpoint_id="ckpt-1",
        suite_id="suite-1",
        evaluation_id="eval-1",
        settings=GenerationSettings(),
        samples=tuple(planted_answers(1000, scale=3.0, seed=0)),
        rules=CalibrationRules(num_resamples=200),
    )
    return calibrate(request, now=START, rng=np.random.default_rng(0))


def test_the_diagram_shows_both_curves_with_their_errors(calibration: Calibration, tmp_path: Path) -> None:
    svg, png = diagrams.draw(calibration, directory=tmp_path / "reliability")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert png.read_bytes().startswith(PNG_SIGNATURE)
    assert [path.name for path in (svg, png)] == ["ckpt-1.svg", "ckpt-1.png"]
    assert calibration.before is not None
    assert calibration.after is not None
    text = svg.read_text()  # texts are drawn as outlines; the comment beside each says what it is
    assert f"ECE {calibration.before.ece.value:.3f}" in text
    assert f"with the temperature map: ECE {calibration.after.ece.value:.3f}" in text


def test_the_same_calibration_gives_the_same_picture(calibration: Calibration, tmp_path: Path) -> None:
    first, second = (diagrams.draw(calibration, directory=tmp_path / name)[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_nothing_is_drawn_of_what_is_unknown(tmp_path: Path) -> None:
    unknown = make_calibration(outcome=CalibrationOutcome.UNKNOWN, map=None)
    assert diagrams.draw(unknown, directory=tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_nothing_is_drawn_and_it_is_said(
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert diagrams.draw(calibration, directory=tmp_path) == []
    assert "matplotlib is not installed" in caplog.text
