"""Planted miscalibration: is the temperature found, does it mend confidence, is what was right left alone.

Two kinds of answers. `model`: a real small model generates through `inference/`, its logits multiplied by a
factor in its last layer; an answer counts as right with the probability that the unscaled model gave it,
drawn for each seed anew. `simulated`: the logits are drawn too, other ones for every seed. Then the judge
does what `calibration.run` does.

    python -m benchmarks.calibration [--rows 3000] [--seeds 20] [--calibrated-seeds 100] [--times 10]

Reported, with Wilson intervals: the share of seeds whose temperature lies within 5 % of the planted one; the
same for the planted factor, the temperature over that of the unscaled logits with the very same answers,
which takes off the chance in who was right; the share whose calibration error on the held-out half is a third
of what it was or less; how often a map is applied where none is needed.

Chance alone makes an error positive: `x1` shows how much of it is left where nothing is wrong, and no map can
go below. A third of a small error lies below that floor on a suite of usual size, so what is left is told
twice more: with the bias taken off (mean over seeds after, over mean before; 95 % of bootstrap draws of the
seeds), and once more on `--times` as many rows, where the floor is a third of it for ten times. The model's
answers are then judged that many times, each time right or wrong by another draw.
"""

from __future__ import annotations

import argparse
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from inference.evaluate import evaluate_rows
from inference.model import LoadedModel, load_model
from inference.testing import make_talkative
from inference.tiny import build_tiny_model
from intelligence.calibration import calibrate
from intelligence.statistics import wilson_interval
from intelligence.testing import planted_answers
from registry.calibrations import (
    Calibration,
    CalibrationOutcome,
    CalibrationRequest,
    CalibrationRules,
    ConfidenceSample,
    MapKind,
    sample_of,
)
from registry.records import GenerationSettings
from registry.rows import ChatMessage, ChatRow

START = datetime(2026, 1, 1, tzinfo=UTC)
SCALES = (0.5, 0.75, 1.5, 2.0, 3.0)
TOLERANCE = 0.05
SETTINGS = GenerationSettings(max_new_tokens=12)
RULES = CalibrationRules(num_resamples=200)

# The talkative model at this scale is as often sure as not, which a calibration is made for.
MODEL_SCALE = 3.0

Planted = Callable[[float, int], list[ConfidenceSample]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--model-rows", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--calibrated-seeds", type=int, default=100)
    parser.add_argument("--times", type=int, default=10, help="as many rows, for the second tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    answered = answers_of_a_model(options.model_rows)
    num_finished = sum(sample.is_finished for sample in answered[1.0])
    print(f"simulated: {options.rows} rows a seed; model: {num_finished} finished of {options.model_rows}")

    for times in sorted({1, options.times}):
        print(f"\n{times * options.rows} rows simulated, {times * num_finished} of the model, half held out")

        def simulated(scale: float, seed: int, times: int = times) -> list[ConfidenceSample]:
            return planted_answers(times * options.rows, scale=scale, seed=seed)

        def modelled(scale: float, seed: int, times: int = times) -> list[ConfidenceSample]:
            return relabelled(answered[scale], truth=answered[1.0], seed=seed, times=times)

        for kind, planted in (("simulated", simulated), ("model", modelled)):
            own = [temperature_of(judged(planted(1.0, seed), seed=seed)) for seed in range(options.seeds)]
            for scale in SCALES:
                print(line_for(kind, scale=scale, planted=planted, own=own), flush=True)
            num_seeds = options.calibrated_seeds if times == 1 else options.seeds
            print(line_for_calibrated(kind, planted=planted, num_seeds=num_seeds), flush=True)
    return 0


def answers_of_a_model(num_rows: int) -> dict[float, list[ConfidenceSample]]:
    """What a real small model answers with its logits multiplied by each scale, 1 included."""
    rows = prompts(num_rows)
    with TemporaryDirectory() as directory:
        build_tiny_model(Path(directory))
        loaded = make_talkative(load_model(Path(directory), device="cpu", num_threads=1, verify_files=False))
    return {
        scale: [sample_of(one) for one in evaluate_rows(scaled(loaded, by=scale), rows, settings=SETTINGS)]
        for scale in (1.0, *SCALES)
    }


def prompts(num_rows: int) -> list[ChatRow]:
    """Questions of random letters, none twice; nobody knows the answer, and none is needed."""
    draw = random.Random(0)
    texts = ("".join(draw.choices(string.ascii_lowercase, k=draw.randint(8, 14))) for _ in range(num_rows))
    return [
        ChatRow(
            messages=(ChatMessage(role="user", content=text), ChatMessage(role="assistant", content="a")),
            difficulty=("easy", "medium", "hard")[place % 3],
        )
        for place, text in enumerate(texts)
    ]


def scaled(loaded: LoadedModel, *, by: float) -> LoadedModel:
    """The model with the logits multiplied, in its output layer; it answers the same, more or less surely."""
    model = type(loaded.model)(loaded.model.config)
    model.load_state_dict(loaded.model.state_dict())
    head = loaded.model.lm_head.weight.detach() * (MODEL_SCALE * by)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return replace(loaded, model=model.eval())


def relabelled(
    samples: Sequence[ConfidenceSample], *, truth: Sequence[ConfidenceSample], seed: int, times: int = 1
) -> list[ConfidenceSample]:
    """Right or wrong by the unscaled model's own probability of the same answer, `times` over."""
    rng = np.random.default_rng(seed)
    draws = rng.random((times, len(samples)))
    return [
        sample.changed(
            row_id=f"{sample.row_id}-{turn}" if turn else sample.row_id,
            is_correct=bool(true.confidence is not None and draw < true.confidence),
        )
        for turn in range(times)
        for sample, true, draw in zip(samples, truth, draws[turn], strict=True)
    ]


def line_for(kind: str, *, scale: float, planted: Planted, own: Sequence[float | None]) -> str:
    """How a planted factor was dealt with; `own` are the unscaled logits' temperatures, a seed each."""
    num_seeds = len(own)
    found = [judged(planted(scale, seed), seed=seed) for seed in range(num_seeds)]
    fitted = [temperature_of(one) for one in found]
    temperatures = [one for one in fitted if one is not None]
    num_near = sum(abs(one / scale - 1) <= TOLERANCE for one in temperatures)
    num_factors = sum(
        abs(one / before / scale - 1) <= TOLERANCE
        for one, before in zip(fitted, own, strict=True)
        if one is not None and before is not None
    )
    num_mended = sum(is_mended(one) for one in found)
    before, after = (np.mean(values) for values in zip(*map(errors, found), strict=True))
    left = left_of([debiased_errors(one) for one in found])
    spread = np.std([one / scale for one in temperatures])
    return (
        f"{kind:9} x{scale:<4} temperature {np.mean(temperatures):.3f} (spread {spread:.1%}), within 5 % "
        f"{told(num_near, num_trials=num_seeds)}, factor within 5 % "
        f"{told(num_factors, num_trials=num_seeds)}; held-out ECE {before:.3f} -> {after:.3f}, "
        f"a third or less {told(num_mended, num_trials=num_seeds)}, debiased {left}; {kinds(found)}"
    )


def line_for_calibrated(kind: str, *, planted: Planted, num_seeds: int) -> str:
    """How often a map is applied where none is needed."""
    found = [judged(planted(1.0, seed), seed=seed) for seed in range(2000, 2000 + num_seeds)]
    num_mapped = sum(one.outcome is not CalibrationOutcome.UNNEEDED for one in found)
    before = np.mean([errors(one)[0] for one in found])
    return (
        f"{kind:9} x1    calibrated: a map is applied {told(num_mapped, num_trials=num_seeds)}; "
        f"held-out ECE {before:.3f}"
    )


def judged(samples: Sequence[ConfidenceSample], *, seed: int) -> Calibration:
    """As `calibration.run` judges them."""
    request = CalibrationRequest(
        calibration_id="cal",
        checkpoint_id="ckpt",
        suite_id="suite",
        evaluation_id="eval",
        settings=SETTINGS,
        samples=tuple(samples),
        rules=RULES,
    )
    return calibrate(request, now=START, rng=np.random.default_rng(seed))


def temperature_of(calibration: Calibration) -> float | None:
    """The fitted temperature, applied or not."""
    fitted = [trial.map.temperature for trial in calibration.trials if trial.map.temperature is not None]
    return fitted[0].value if fitted else None


def errors(calibration: Calibration) -> tuple[float, float]:
    """Held-out calibration error before and after."""
    if calibration.before is None or calibration.after is None:
        raise SystemExit(f"The planted answers could not be judged: {calibration.reason}")
    return calibration.before.ece.value, calibration.after.ece.value


def debiased_errors(calibration: Calibration) -> tuple[float, float]:
    """The same, less what chance makes of it."""
    if calibration.before is None or calibration.after is None:
        raise SystemExit(f"The planted answers could not be judged: {calibration.reason}")
    return calibration.before.debiased_ece.value, calibration.after.debiased_ece.value


def left_of(pairs: Sequence[tuple[float, float]]) -> str:
    """The share of the debiased error that is left, with its interval over seeds."""
    before, after = np.array(pairs).T
    places = np.random.default_rng(0).integers(0, len(before), (2000, len(before)))
    ratios = after[places].mean(axis=1) / before[places].mean(axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    share = after.mean() / before.mean()
    return f"{before.mean():.3f} -> {after.mean():.3f}, {share:.0%} left ({low:.0%} to {high:.0%})"


def is_mended(calibration: Calibration) -> bool:
    """A third of the error, or less, is left."""
    before, after = errors(calibration)
    return after <= before / 3


def kinds(found: Sequence[Calibration]) -> str:
    """Which maps were applied, and how often."""
    applied = [one.map.kind for one in found if one.map is not None]
    return ", ".join(f"{kind} {applied.count(kind)}" for kind in MapKind if kind in applied)


def told(num_successes: int, *, num_trials: int) -> str:
    """A share with its interval and n."""
    share = wilson_interval(num_successes, num_trials=num_trials)
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, n = {num_trials})"


if __name__ == "__main__":
    raise SystemExit(main())
