"""Evaluation pass beside one-row-at-a-time transformers, in the same run: examples a second, n and spread.

Both score the expected answer and generate greedily for every row, with the same loaded model. The order of
the two alternates from repetition to repetition, so that a drift of the machine favours neither; results are
compared before any number is printed.

    python -m benchmarks.evaluation [--model DIR --suite FILE] [--repetitions 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from inference.evaluate import evaluate_rows
from inference.model import LoadedModel, load_model
from inference.prompts import encode_row
from inference.testing import make_talkative
from inference.tiny import build_tiny_model
from registry.records import GenerationSettings
from registry.rows import ChatMessage, ChatRow, read_rows

Result = tuple[float | None, str]
Runner = Callable[[LoadedModel, Sequence[ChatRow], int], list[Result]]


@dataclass(frozen=True)
class Rates:
    """Examples a second of each repetition."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle repetition."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return (
            f"{self.name:<22} {self.median:8.1f} examples/s  ({low:.1f} to {high:.1f}, n={len(self.values)})"
        )


def main() -> int:
    """Print both rates and their ratio; 1 where the two disagree on a result."""
    options = _options()
    loaded, rows = _material(options)
    runners: list[tuple[str, Runner]] = [("tandem, batched", _batched), ("one row at a time", _one_by_one)]
    if _disagree(runners, loaded=loaded, rows=rows, max_new_tokens=options.max_new_tokens):
        return 1
    seconds: dict[str, list[float]] = {name: [] for name, _ in runners}
    for repetition in range(options.repetitions):
        for name, run in runners if repetition % 2 == 0 else reversed(runners):
            began = time.perf_counter()
            run(loaded, rows, options.max_new_tokens)
            seconds[name].append(time.perf_counter() - began)
    rates = [Rates(name, tuple(len(rows) / spent for spent in seconds[name])) for name, _ in runners]
    print(f"{len(rows)} rows, {options.max_new_tokens} new tokens at most", end=", ")
    print(f"{loaded.device}, {torch.get_num_threads()} threads")
    print(*rates, sep="\n")
    print(f"ratio of medians: {rates[0].median / rates[1].median:.2f}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory; a small one is made without it")
    parser.add_argument("--suite", type=Path, help="suite of rows; words of 3 to 10 letters without it")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _material(options: argparse.Namespace) -> tuple[LoadedModel, list[ChatRow]]:
    rows = list(read_rows(options.suite))[: options.rows] if options.suite else _words(options.rows)
    if options.model:
        return load_model(options.model, num_threads=options.threads), rows
    with tempfile.TemporaryDirectory() as directory:
        path = build_tiny_model(Path(directory))
        loaded = load_model(path, device="cpu", num_threads=options.threads, verify_files=False)
        return make_talkative(loaded), rows


def _words(num_rows: int) -> list[ChatRow]:
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 10))) for _ in range(num_rows)]
    return [_row(word) for word in words]


def _row(word: str) -> ChatRow:
    question = f"Spell this word backward (example: sun -> nus): {word}"
    turns = (ChatMessage(role="user", content=question), ChatMessage(role="assistant", content=word[::-1]))
    return ChatRow(messages=turns)


def _disagree(
    runners: Sequence[tuple[str, Runner]],
    *,
    loaded: LoadedModel,
    rows: Sequence[ChatRow],
    max_new_tokens: int,
) -> bool:
    """Also the warm-up of both."""
    ours, theirs = (run(loaded, rows, max_new_tokens) for _, run in runners)
    num_different = sum(
        left[1] != right[1] or abs((left[0] or 0.0) - (right[0] or 0.0)) > 1e-3
        for left, right in zip(ours, theirs, strict=True)
    )
    if num_different:
        print(f"{num_different} of {len(rows)} rows have different results: the rates mean nothing.")
    return num_different > 0


def _batched(loaded: LoadedModel, rows: Sequence[ChatRow], max_new_tokens: int) -> list[Result]:
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    return [(result.loss, result.answer) for result in evaluate_rows(loaded, rows, settings=settings)]


def _one_by_one(loaded: LoadedModel, rows: Sequence[ChatRow], max_new_tokens: int) -> list[Result]:
    return [_one(loaded, row, max_new_tokens=max_new_tokens) for row in rows]


@torch.inference_mode()
def _one(loaded: LoadedModel, row: ChatRow, *, max_new_tokens: int) -> Result:
    encoded = encode_row(loaded, row)
    whole = torch.tensor([encoded.prompt + encoded.answer], device=loaded.device)
    labels = whole.clone()
    labels[:, : len(encoded.prompt)] = -100
    loss = float(loaded.model(input_ids=whole, labels=labels).loss)
    prompt = whole[:, : len(encoded.prompt)]
    output = loaded.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=max_new_tokens
    )
    tokens = [
        token for token in output[0, len(encoded.prompt) :].tolist() if token not in loaded.stop_token_ids
    ]
    return loss, loaded.tokenizer.decode(tokens)


if __name__ == "__main__":
    raise SystemExit(main())
