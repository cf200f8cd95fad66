"""The records of calibration: what was measured, the map that was chosen, and what a release carries of it.

The confidence of an answer is the probability of the whole sequence that was generated, end of turn included.
It is calibrated where, of the answers given with confidence c, a share c is right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from enum import StrEnum
from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from registry.records import TEMPERATURES, Estimate, ExampleResult, GenerationSettings, Record

CONFIDENCE_FILE = "confidence.json"

# A log-probability is not above zero but by rounding; beyond the other bound exp has long been zero.
ROUNDING_NATS = 1e-3
MAX_NATS = 1e6


class CalibrationOutcome(StrEnum):
    """What a calibration found."""

    MAPPED = "mapped"  #: a map is significantly better than the model's own confidence, on rows it never saw
    UNNEEDED = "unneeded"  #: no map is: the model's own confidence stands
    UNKNOWN = "unknown"  #: it could not be measured; no confidence is given


class MapKind(StrEnum):
    """How a confidence is corrected."""

    IDENTITY = "identity"  #: not at all
    TEMPERATURE = "temperature"  #: every token's logits divided by one number (Guo et al. 2017)
    ISOTONIC = "isotonic"  #: the best non-decreasing function of the confidence (Zadrozny & Elkan 2002)


class CalibrationMap(Record):
    """From the model's own confidence to a calibrated one.

    `knots` are (confidence, calibrated) with straight lines between and constants beyond. `num_fitted` rows
    made it.
    """

    kind: MapKind
    temperature: Estimate | None = None
    knots: tuple[tuple[float, float], ...] = ()
    num_fitted: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.temperature is not None) != (self.kind is MapKind.TEMPERATURE):
            raise ValueError("a temperature belongs to a temperature map, and to no other")
        if bool(self.knots) != (self.kind is MapKind.ISOTONIC):
            raise ValueError("knots belong to an isotonic map, and to no other")
        if self.temperature is not None and self.temperature.value <= 0:
            raise ValueError("a temperature is above zero")
        for before, after in zip(self.knots, self.knots[1:], strict=False):
            if before[0] >= after[0] or before[1] > after[1]:
                raise ValueError("knots grow in confidence and never fall")
        if any(not 0 <= number <= 1 for knot in self.knots for number in knot):
            raise ValueError("knots are pairs of probabilities")
        return self

    def apply(self, confidence: float, *, tempered: float | None = None) -> float | None:
        """The calibrated confidence of one answer; None where a temperature map lacks `tempered`.

        `tempered` is the probability of the same sequence with the logits divided by the map's temperature.
        """
        if self.kind is MapKind.TEMPERATURE:
            return tempered
        return confidence if self.kind is MapKind.IDENTITY else _interpolated(self.knots, at=confidence)


class ReliabilityBin(Record):
    """Answers whose confidence lies in [low, high), 1 included in the last; no means where there are none."""

    low: float
    high: float
    num_examples: int = Field(ge=0)
    mean_confidence: float | None
    accuracy: Estimate | None


class Reliability(Record):
    """How well a confidence says how often it is right. Every estimate has the same n.

    `ece`: expected calibration error over six fixed bins, weighted by their sizes. `debiased_ece`: the same
    less what a perfectly calibrated model would show on so few rows. `adaptive_ece`: over bins of equal
    mass. `brier` = `reliability` - `resolution` + `uncertainty` + `within_bins`. `confidence_gap`: mean
    confidence less accuracy, above zero where the model is too sure; `overconfidence` and `underconfidence`
    are the parts of `ece` from bins on either side.
    """

    ece: Estimate
    debiased_ece: Estimate
    adaptive_ece: Estimate
    brier: Estimate
    reliability: Estimate
    resolution: Estimate
    uncertainty: Estimate
    within_bins: Estimate
    confidence_gap: Estimate
    overconfidence: Estimate
    underconfidence: Estimate
    bins: tuple[ReliabilityBin, ...]


class MapTrial(Record):
    """A map that was fitted on one half, and by how much it lowers the Brier score of the other."""

    map: CalibrationMap
    improvement: Estimate
    is_significant: bool


class Calibration(Record):
    """Judgement of one evaluation's confidences. The map is fitted on one half, all else is of the other.

    `overall` is of all rows, with the model's own confidence; `before` and `after` of the held-out half.
    """

    id: str
    checkpoint_id: str
    suite_id: str
    evaluation_id: str
    outcome: CalibrationOutcome
    reason: str
    num_examples: int = Field(ge=0)
    num_unfinished: int = Field(default=0, ge=0, description="cut off at the limit: no answer, no confidence")
    num_held_out: int = Field(default=0, ge=0)
    map: CalibrationMap | None = None
    trials: tuple[MapTrial, ...] = ()
    overall: Reliability | None = None
    before: Reliability | None = None
    after: Reliability | None = None
    settings: GenerationSettings = Field(description="how the answers were generated; it holds for no other")
    decided_at: AwareDatetime

    @model_validator(mode="after")
    def _has_a_map_where_it_is_known(self) -> Self:
        if (self.map is None) != (self.outcome is CalibrationOutcome.UNKNOWN):
            raise ValueError("an unknown calibration has no map, any other has one")
        return self


class ConfidenceNote(Record):
    """What a release carries, in `confidence.json`: how its answers' confidence is to be corrected."""

    calibration_id: str
    outcome: CalibrationOutcome
    reason: str
    map: CalibrationMap | None
    num_held_out: int = Field(ge=0)
    settings: GenerationSettings


class ServedConfidence(Record):
    """What the inference server says of an answer's confidence.

    `value` is calibrated; None with `reason` where it cannot be had. `own` is the model's, uncorrected. `map`
    was fitted on `num_fitted` rows and judged on `num_held_out` others.
    """

    value: float | None = Field(ge=0, le=1)
    own: float | None = Field(ge=0, le=1)
    map: MapKind | None
    num_fitted: int = Field(ge=0)
    num_held_out: int = Field(ge=0)
    reason: str = ""


class ConfidenceSample(Record):
    """One answer, as far as calibration looks at it."""

    row_id: str
    difficulty: str
    is_correct: bool
    is_finished: bool
    confidence: float | None = Field(default=None, ge=0, le=1)
    tempered_logprobs: tuple[float, ...] = ()
    problem: str = ""


class CalibrationRules(Record):
    """When a calibration says something, and when a map is applied."""

    min_examples: int = Field(default=100, ge=20, description="finished answers; half of them judge the map")
    min_of_each: int = Field(default=5, ge=1, description="right and wrong answers in each half")
    significance: float = Field(
        default=3.0, gt=0, description="standard errors by which a map must lower the held-out Brier score"
    )
    num_resamples: int = Field(default=1000, ge=200)
    # The sweep asks again after so long, and the message that was sent before has expired by then.
    retry_after_seconds: float = Field(default=600.0, gt=0)
    max_asks: int = Field(default=3, ge=1, description="then the calibration is unknown")


class CalibrationRequest(Record):
    """`calibration.run`: an evaluation's answers to judge. No model is loaded for it."""

    calibration_id: str
    checkpoint_id: str
    suite_id: str
    evaluation_id: str
    settings: GenerationSettings
    samples: tuple[ConfidenceSample, ...]
    rules: CalibrationRules


def sample_of(example: ExampleResult) -> ConfidenceSample:
    """What calibration needs of an example."""
    return ConfidenceSample(
        row_id=example.row_id,
        difficulty=example.difficulty,
        is_correct=example.is_correct,
        is_finished=example.finish_reason == "stop",
        confidence=example.confidence,
        tempered_logprobs=example.tempered_logprobs,
        problem=example.problem,
    )


def note_of(calibration: Calibration) -> ConfidenceNote:
    """What a release carries of it."""
    known = set(ConfidenceNote.model_fields) - {"calibration_id"}
    return ConfidenceNote(calibration_id=calibration.id, **calibration.model_dump(include=known))


def confidence_files(calibration: Calibration) -> Mapping[str, bytes]:
    """The file by which a release carries its map."""
    return {CONFIDENCE_FILE: note_of(calibration).model_dump_json(indent=2).encode() + b"\n"}


def has_temperatures(sample: ConfidenceSample) -> bool:
    """Whether it says how likely its answer is at every temperature, in numbers that can be reckoned with."""
    kept = sample.tempered_logprobs
    return len(kept) == len(TEMPERATURES) and all(-MAX_NATS <= one <= ROUNDING_NATS for one in kept)


def _interpolated(knots: tuple[tuple[float, float], ...], *, at: float) -> float:
    place = bisect_right([knot[0] for knot in knots], at)
    if place in (0, len(knots)):
        return knots[0 if place == 0 else -1][1]
    (left, low), (right, high) = knots[place - 1], knots[place]
    return low + (high - low) * (at - left) / (right - left)
