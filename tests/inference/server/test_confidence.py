"""Answers come with the confidence that their release's map makes of the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from inference.generation import Generated
from inference.server.app import make_app
from inference.server.confidence import confidence_of, read_note, temperatures_of
from inference.server.config import ServerConfig
from inference.testing import seal
from registry.calibrations import (
    CONFIDENCE_FILE,
    CalibrationMap,
    CalibrationOutcome,
    ConfidenceNote,
    MapKind,
)
from registry.manifests import MANIFEST_NAME
from registry.records import Estimate, GenerationSettings

GREEDY = GenerationSettings()
TWO = Estimate(value=2.0, low=1.9, high=2.1, num_samples=500)
MAPS = {
    "temperature": CalibrationMap(kind=MapKind.TEMPERATURE, temperature=TWO, num_fitted=500),
    "isotonic": CalibrationMap(kind=MapKind.ISOTONIC, knots=((0.2, 0.1), (0.8, 0.4)), num_fitted=500),
    "identity": CalibrationMap(kind=MapKind.IDENTITY, num_fitted=0),
}


def note_with(how: CalibrationMap | None) -> ConfidenceNote:
    return ConfidenceNote(
        calibration_id="cal-1",
        outcome=CalibrationOutcome.UNKNOWN if how is None else CalibrationOutcome.MAPPED,
        reason="Too few rows." if how is None else "",
        map=how,
        num_held_out=400,
        settings=GREEDY,
    )


def reply(**changes: Any) -> Generated:
    fields: dict[str, Any] = {"text": "a", "token_ids": (5,), "num_tokens": 2, "finish_reason": "stop"}
    fields |= {"logprob": -0.693147, "confidence": 0.5, "tempered_logprobs": (-1.203973,)}
    return Generated(**(fields | changes))


@pytest.mark.parametrize(("kind", "value"), [("temperature", 0.3), ("isotonic", 0.25), ("identity", 0.5)])
def test_each_map_corrects_the_models_own_confidence(kind: str, value: float) -> None:
    told = confidence_of(reply(), note=note_with(MAPS[kind]), settings=GREEDY)
    assert told.value == pytest.approx(value, abs=1e-6)
    assert (told.own, told.map, told.num_held_out, told.reason) == (0.5, kind, 400, "")


@pytest.mark.parametrize(
    ("changes", "settings", "how", "reason"),
    [
        ({}, GREEDY, None, "Too few rows."),
        ({"finish_reason": "length"}, GREEDY, "identity", "cut off"),
        ({"confidence": None}, GREEDY, "identity", "not finite"),
        ({"tempered_logprobs": ()}, GREEDY, "temperature", "map's temperature is not known"),
        ({}, GenerationSettings(temperature=0.7), "identity", "greedy replies"),
        ({}, GenerationSettings(stop=("x",)), "identity", "greedy replies"),
    ],
)
def test_what_was_not_calibrated_has_no_confidence_and_says_why(
    changes: dict[str, Any], settings: GenerationSettings, how: str | None, reason: str
) -> None:
    told = confidence_of(reply(**changes), note=note_with(MAPS[how] if how else None), settings=settings)
    assert told.value is None
    assert reason in told.reason


def test_a_release_without_a_note_or_with_a_broken_one_says_so(tmp_path: Path) -> None:
    assert read_note(tmp_path).reason == "The release carries no calibration."
    (tmp_path / CONFIDENCE_FILE).write_text("{")
    assert "cannot be read" in read_note(tmp_path).reason
    assert temperatures_of(read_note(tmp_path)) == ()


def ask(client: TestClient, **fields: object) -> Any:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5} | fields
    return client.post("/v1/chat/completions", json=body)


def serve(config: ServerConfig) -> Any:
    return TestClient(make_app(config), base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_the_server_answers_with_the_map_of_the_release_at_every_door(config: ServerConfig) -> None:
    release = config.releases_dir / "release-1"
    (release / MANIFEST_NAME).unlink()
    (release / CONFIDENCE_FILE).write_text(note_with(MAPS["temperature"]).model_dump_json())
    seal(release)
    with serve(config) as client:
        client.app.state.restored.result(timeout=60)
        whole = ask(client).json()["confidence"]
        plain = client.post("/generate", json={"prompt": "hi", "max_new_tokens": 5}).json()["confidence"]
        stream = ask(client, stream=True).text
    assert (whole["map"], whole["num_fitted"], whole["num_held_out"]) == ("temperature", 500, 400)
    assert (whole["value"] is None) == bool(whole["reason"])
    assert 0 <= whole["own"] <= 1
    assert plain == whole
    assert stream.count('"confidence"') == 1


def test_a_release_without_a_calibration_gives_none_with_the_reason(
    config: ServerConfig, releases_dir: Path
) -> None:
    with serve(config) as client:
        client.app.state.restored.result(timeout=60)
        told = ask(client).json()["confidence"]
    assert (told["value"], told["reason"]) == (None, "The release carries no calibration.")
