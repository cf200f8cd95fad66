"""Faults of a chosen size, planted into a small model that was trained well.

A fault's size is the increase of the loss on rows that neither suite nor pool holds; it is sized there by
bisection, and what it came to is measured on the pool.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.support.lab import BRANCH, BRANCH_STEPS, FREQUENCIES, LETTERS, OPERATIONS, SIGNS, Lab, Weights
from trainer.core.models import save_model

HALVINGS = 7
FORGETTING_STEPS = 15
NUM_FORGETTING_ROWS = 3000
NUM_LAYERS = 2
OWN_STEPS = 6

Ids = NDArray[np.int64]
# The relative increase of the loss of the weights in use, with tokens renamed if there are `ids`.
Measure = Callable[[Ids | None], float]


@dataclass(frozen=True)
class Planted:
    """A model as it would arrive: its weights, and the letters that its tokenizer takes for each other."""

    weights: Weights
    swaps: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Start:
    """What a fault is planted in; and weights of the training before, each with the loss it had there."""

    weights: Weights
    earlier: tuple[tuple[float, Weights], ...]


def weight_noise(lab: Lab, *, start: Start, measure: Measure, target: float, seed: int) -> Planted:
    """Noise on every matrix, in proportion to its own spread."""
    noise = _noise(start.weights, seed=seed, only="")
    return Planted(_scaled(lab, start.weights, direction=noise, measure=measure, target=target))


def ruined_layer(lab: Lab, *, start: Start, measure: Measure, target: float, seed: int) -> Planted:
    """The matrices of one layer on their way to random ones."""
    noise = _noise(start.weights, seed=seed, only=f"layers.{seed % NUM_LAYERS}.")
    direction = {name: value - start.weights[name] for name, value in noise.items()}
    return Planted(_scaled(lab, start.weights, direction=direction, measure=measure, target=target))


def forgotten_tag(lab: Lab, *, start: Start, measure: Measure, target: float, seed: int) -> Planted:
    """Weights on the way to a model that was taught another operation under the tag's sign."""
    tag = list(OPERATIONS)[seed % len(OPERATIONS)]
    direction = torch.load(forgetting_file(lab, tag=tag))
    return Planted(_scaled(lab, start.weights, direction=direction, measure=measure, target=target))


def wrong_tokenizer(lab: Lab, *, start: Start, measure: Measure, target: float, seed: int) -> Planted:
    """A vocabulary in which two letters are exchanged, as frequent as comes nearest to the size."""
    lab.use(start.weights)
    draw = random.Random(seed)
    share = dict(zip(LETTERS, FREQUENCIES, strict=True))
    pairs = list(itertools.combinations(LETTERS, 2))
    best: tuple[float, tuple[tuple[str, str], ...]] = (float("inf"), ())
    for frequency in np.geomspace(0.15, 20, HALVINGS):
        nearest = sorted(pairs, key=lambda pair: abs(share[pair[0]] + share[pair[1]] - frequency))
        chosen = (draw.choice(nearest[:5]),)
        increase = measure(swapped_ids(lab, swaps=chosen))
        best = min(best, (abs(increase - target), chosen))
    return Planted(start.weights, swaps=best[1])


def truncated_training(lab: Lab, *, start: Start, measure: Measure, target: float, seed: int) -> Planted:
    """Weights of the training long before its end, after some steps of an order of their own."""
    nearest = sorted(start.earlier, key=lambda earlier: abs(earlier[0] - target))[:2]
    found: list[tuple[float, int, Weights]] = []
    for place, (_, weights) in enumerate(nearest):
        lab.use(weights)
        for _ in lab.train(
            hyperparameters=BRANCH, num_steps=OWN_STEPS, seed=seed, schedule_steps=BRANCH_STEPS
        ):
            pass
        found.append((abs(measure(None) - target), place, lab.weights()))
    return Planted(min(found)[2])


KINDS: dict[str, Callable[..., Planted]] = {
    "weight noise": weight_noise,
    "ruined layer": ruined_layer,
    "forgotten tag": forgotten_tag,
    "wrong tokenizer": wrong_tokenizer,
    "truncated training": truncated_training,
}


def learn_to_forget(lab: Lab, *, tag: str, seed: int) -> None:
    """Keep the direction in which the model forgets a tag and keeps the rest, for `forgotten_tag`."""
    before = lab.weights()
    path = lab.directory / f"without-{tag}.jsonl"
    wrong = next(name for name in OPERATIONS if name not in (tag, "copy")) if tag != "copy" else "reverse"
    lines = [
        json.loads(line)
        for line in (lab.directory / "training.jsonl").read_text().splitlines()[:NUM_FORGETTING_ROWS]
    ]
    for row in lines:
        if row["prompt"].startswith(SIGNS[tag]):
            row["completion"] = OPERATIONS[wrong](row["prompt"][1:])
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    ends = []
    for rows in (path, lab.directory / "training.jsonl"):
        lab.use(before)
        taught = lab.tokenized(rows, num_rows=NUM_FORGETTING_ROWS)
        for _ in lab.train(hyperparameters=BRANCH, num_steps=FORGETTING_STEPS, seed=seed, dataset=taught):
            pass
        ends.append(lab.weights())
    # The same steps on right answers are taken off: what is left of the way is the forgetting alone.
    direction = {name: value - ends[1][name] for name, value in ends[0].items()}
    torch.save(direction, forgetting_file(lab, tag=tag))
    lab.use(before)


def forgetting_file(lab: Lab, *, tag: str) -> Path:
    """Where the direction lies."""
    return lab.directory / f"without-{tag}.pt"


def swapped_ids(lab: Lab, *, swaps: tuple[tuple[str, str], ...]) -> Ids | None:
    """The token that stands for each token once the letters are exchanged; None where none is."""
    if not swaps:
        return None
    vocabulary = lab.tokenizer.get_vocab()
    ids = np.arange(max(vocabulary.values()) + 1)
    for one, other in swaps:
        first, second = vocabulary[one], vocabulary[other]
        ids[first], ids[second] = second, first
    return ids


def save(lab: Lab, planted: Planted, *, directory: Path) -> Path:
    """Write the model as a checkpoint's directory, its tokenizer's file with the letters exchanged."""
    lab.use(planted.weights)
    save_model(lab.model, tokenizer=lab.tokenizer, directory=directory, dtype=torch.float32)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for one, other in planted.swaps:
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))
    return directory


def _scaled(lab: Lab, start: Weights, *, direction: Weights, measure: Measure, target: float) -> Weights:
    """Along a direction, as far as the measured increase comes to `target`."""
    low, high = 0.0, 1.0
    while _increase(lab, _moved(start, direction, by=high), measure=measure) < target and high < 64:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _increase(lab, _moved(start, direction, by=middle), measure=measure) < target:
            low = middle
        else:
            high = middle
    return _moved(start, direction, by=(low + high) / 2)


def _increase(lab: Lab, weights: Weights, *, measure: Measure) -> float:
    lab.use(weights)
    return measure(None)


def _moved(start: Weights, direction: Weights, *, by: float) -> Weights:
    return {
        name: value + by * direction[name] if name in direction else value for name, value in start.items()
    }


def _noise(weights: Weights, *, seed: int, only: str) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: float(value.std()) * torch.randn(value.shape, generator=generator)
        for name, value in weights.items()
        if value.ndim == 2 and only in name and "lm_head" not in name
    }
