"""An answer's confidence: corrected by the map that its release carries, or none with the reason."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from inference.generation import Generated
from inference.sampling import is_drawn
from registry.calibrations import (
    CONFIDENCE_FILE,
    CalibrationOutcome,
    ConfidenceNote,
    MapKind,
    ServedConfidence,
)
from registry.records import GenerationSettings


def read_note(directory: Path) -> ConfidenceNote:
    """What a release says of its confidence; `unknown` with the reason where it says nothing readable."""
    path = directory / CONFIDENCE_FILE
    try:
        return ConfidenceNote.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _no_note("The release carries no calibration.")
    except (ValidationError, OSError):
        return _no_note(f"The release's {CONFIDENCE_FILE} cannot be read.")


def temperatures_of(note: ConfidenceNote) -> tuple[float, ...]:
    """At which temperatures the probability of a reply is wanted."""
    how = note.map
    return () if how is None or how.temperature is None else (how.temperature.value,)


def confidence_of(
    result: Generated, *, note: ConfidenceNote, settings: GenerationSettings
) -> ServedConfidence:
    """The calibrated probability that the reply is right.

    A map holds for replies made as those it was fitted on: greedy, and ended by the model itself.
    """
    reason = _why_unknown(result, note=note, settings=settings)
    value = None
    if not reason and note.map is not None and result.confidence is not None:
        tempered = min(1.0, math.exp(result.tempered_logprobs[0])) if result.tempered_logprobs else None
        value = note.map.apply(result.confidence, tempered=tempered)
    return ServedConfidence(
        value=value,
        own=result.confidence,
        map=note.map.kind if note.map else None,
        num_fitted=note.map.num_fitted if note.map else 0,
        num_held_out=note.num_held_out,
        reason=reason,
    )


def _why_unknown(result: Generated, *, note: ConfidenceNote, settings: GenerationSettings) -> str:
    if note.map is None:
        return note.reason
    if result.confidence is None:
        return "The model's logits were not finite."
    if is_drawn(settings) or settings.stop:
        return (
            "Confidence was calibrated on greedy replies without stop strings; this one was asked otherwise."
        )
    if result.finish_reason != "stop":
        return "The reply was cut off before its end."
    if note.map.kind is MapKind.TEMPERATURE and not result.tempered_logprobs:
        return "Its probability at the map's temperature is not known."
    return ""


def _no_note(reason: str) -> ConfidenceNote:
    return ConfidenceNote(
        calibration_id="",
        outcome=CalibrationOutcome.UNKNOWN,
        reason=reason,
        map=None,
        num_held_out=0,
        settings=GenerationSettings(),
    )
