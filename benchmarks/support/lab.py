"""Small real models for the benchmark of verdicts: their task, their training, their true loss.

The task: a letter names one of ten operations on a word, such as spelling it backward; the answer is a few
letters. The operation is a row's tag, the word's length its difficulty. Letters are as frequent as in
English, so that some are rare. A model has two layers and about 140 000 parameters and is trained by the
trainer's own functions, long enough to know part of it.

The truth of a model is its mean loss over a pool of rows of the same kind, six times as large as the suite
and without a row in common.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from inference.tiny import build_tiny_model
from registry.rows import ChatMessage, ChatRow
from trainer.config.hyperparameters import Hyperparameters
from trainer.core.batching import BatchPlan
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.loss import answer_logits, collate
from trainer.core.models import load_model, load_tokenizer
from trainer.core.optimizer import learning_rate_at, make_optimizer
from trainer.core.step import StepRunner

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]
Floats = NDArray[np.float64]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Per cent in English text (Lewand 2000, "Cryptological Mathematics").
FREQUENCIES = (
    8.167, 1.492, 2.782, 4.253, 12.702, 2.228, 2.015, 6.094, 6.966, 0.153, 0.772, 4.025, 2.406,
    6.749, 7.507, 1.929, 0.095, 5.987, 6.327, 9.056, 2.758, 0.978, 2.360, 0.150, 1.974, 0.074,
)  # fmt: skip
OPERATIONS: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "next": lambda word: "".join(_shifted(letter, by=1) for letter in word),
    "previous": lambda word: "".join(_shifted(letter, by=-1) for letter in word),
    "ends": lambda word: word[-1] + word[1:-1] + word[0],
    "rotate": lambda word: word[1:] + word[0],
    "highest": lambda word: max(word),
    "lowest": lambda word: min(word),
    "mirror": lambda word: "".join(LETTERS[25 - LETTERS.index(letter)] for letter in word),
}
TAGS = tuple(OPERATIONS)
SIGNS = dict(zip(TAGS, "CRSNPEOHLM", strict=True))
DIFFICULTIES = {"easy": 3, "medium": 4, "hard": 5}

NUM_TRAINING_ROWS = 15_000
NUM_TUNING_ROWS = 900
# A training is a trunk, in which the rate falls slowly, and a branch, in which it falls to 0. Twins share the
# trunk and take the branch in an order of their own.
TRUNK_STEPS = 520
BRANCH_STEPS = 50
TRUNK = Hyperparameters(learning_rate=3e-3, warmup_steps=40, tokens_per_batch=2048, num_epochs=1000)
WHOLE_STEPS = 620  # those over which the trunk's rate would reach 0
BRANCH = TRUNK.changed(learning_rate=5e-4, warmup_steps=5, tokens_per_batch=1024)
ROWS_PER_PASS = 512


@dataclass(frozen=True)
class Rows:
    """Rows as tokens, with what a slice is made of."""

    dataset: TokenizedDataset
    tags: NDArray[np.str_]
    difficulties: NDArray[np.str_]


class Lab:
    """The model, its rows and its training, in a directory that every process opens for itself."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model_directory = directory / "model"
        self.tokenizer = load_tokenizer(self.model_directory)
        self.model = load_model(self.model_directory, device=CPU, tokenizer=self.tokenizer)

    @classmethod
    def make(cls, directory: Path, *, num_suite_rows: int, seed: int) -> Lab:
        """Draw all rows, disjoint, and an untrained model."""
        build_tiny_model(directory / "model", seed=seed, hidden_size=64, num_layers=2)
        sizes = {
            "suite": num_suite_rows,
            "pool": 6 * num_suite_rows,
            "tuning": NUM_TUNING_ROWS,
            "training": NUM_TRAINING_ROWS,
        }
        draw, seen = random.Random(seed), set[str]()
        for name, num_rows in sizes.items():
            rows = _draw_rows(draw, num_rows=num_rows, seen=seen, prefix=name)
            (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return cls(directory)

    @cached_property
    def suite(self) -> list[ChatRow]:
        """What the monitor sees."""
        return [_chat_row(row) for row in self._read("suite")]

    @cached_property
    def pool(self) -> Rows:
        """What truth is measured on."""
        return self._tokenized("pool")

    @cached_property
    def tuning(self) -> Rows:
        """What a fault is sized on, so that neither suite nor pool shaped it."""
        return self._tokenized("tuning")

    @cached_property
    def training(self) -> Rows:
        """What is learnt."""
        return self._tokenized("training")

    def weights(self) -> Weights:
        """A copy of the model's weights."""
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def use(self, weights: Weights) -> None:
        """Put weights into the model."""
        self.model.load_state_dict(weights, strict=False)  # a tied matrix stands there once

    def train(
        self,
        *,
        hyperparameters: Hyperparameters,
        num_steps: int,
        seed: int,
        schedule_steps: int | None = None,
        dataset: TokenizedDataset | None = None,
    ) -> Iterator[int]:
        """Train the model in place with the trainer's own parts; yields the number of steps taken so far.

        The rate falls to 0 over `schedule_steps`, which are `num_steps` unless given.
        """
        dataset = self.training.dataset if dataset is None else dataset
        runner = StepRunner(
            self.model,
            optimizer=make_optimizer(self.model, hyperparameters=hyperparameters),
            dataset=dataset,
            hyperparameters=hyperparameters,
            device=CPU,
            dtype=torch.float32,
            warn=print,
        )
        plan = BatchPlan(
            lengths=dataset.lengths,
            tokens_per_batch=hyperparameters.tokens_per_batch,
            num_epochs=hyperparameters.num_epochs,
            seed=seed,
        )
        for step in range(num_steps):
            self.model.train()
            rate = learning_rate_at(
                step, num_steps=schedule_steps or num_steps, hyperparameters=hyperparameters
            )
            runner.take(plan.batch(step), step=step, learning_rate=rate)
            yield step + 1

    def losses(self, rows: Rows, *, ids: NDArray[np.int64] | None = None) -> Floats:
        """Mean nats an answer token of every row, as an evaluation gives them. `ids` renames tokens."""
        dataset = rows.dataset if ids is None else _renamed(rows.dataset, ids=ids)
        self.model.eval()
        found = np.empty(dataset.num_sequences)
        order = np.argsort(dataset.lengths, kind="stable")
        with torch.inference_mode():
            for start in range(0, len(order), ROWS_PER_PASS):
                places = order[start : start + ROWS_PER_PASS]
                found[places] = self._losses(dataset, places=places)
        return found

    def _losses(self, dataset: TokenizedDataset, *, places: NDArray[np.int64]) -> Floats:
        batch = collate(dataset, indices=places, device=CPU)
        each = functional.cross_entropy(
            answer_logits(self.model, batch=batch), batch.targets, reduction="none"
        )
        counts = self._counts(dataset)[places]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        sums: Floats = np.add.reduceat(each.double().numpy(), starts)
        return sums / counts

    @staticmethod
    def _counts(dataset: TokenizedDataset) -> NDArray[np.int64]:
        """Answer tokens of each row."""
        return np.add.reduceat(dataset.is_answer.astype(np.int64), dataset.starts[:-1])

    def tokenized(self, path: Path, *, num_rows: int | None = None) -> TokenizedDataset:
        """Rows of a file as tokens; the first `num_rows`, if given."""
        encoder = ChatEncoder(self.tokenizer)
        if num_rows is None:
            return tokenize_file(path, encoder=encoder, max_length=64, overlong="reject")
        short = path.with_suffix(f".{num_rows}")
        short.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:num_rows]))
        return tokenize_file(short, encoder=encoder, max_length=64, overlong="reject")

    def _tokenized(self, name: str) -> Rows:
        rows = self._read(name)
        return Rows(
            dataset=self.tokenized(self.directory / f"{name}.jsonl"),
            tags=np.array([row["tags"][0] for row in rows]),
            difficulties=np.array([row["difficulty"] for row in rows]),
        )

    def _read(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / f"{name}.jsonl").read_text().splitlines()]


def _draw_rows(draw: random.Random, *, num_rows: int, seen: set[str], prefix: str) -> list[dict[str, Any]]:
    """As many rows of each tag, and of each difficulty."""
    cells = [(tag, level) for tag in TAGS for level in DIFFICULTIES]
    rows = []
    for number in range(num_rows):
        tag, level = cells[number % len(cells)]
        prompt = _new_prompt(draw, tag=tag, num_letters=DIFFICULTIES[level], seen=seen)
        answer = OPERATIONS[tag](prompt[1:])
        rows.append(
            {
                "id": f"{prefix}-{number:06d}",
                "difficulty": level,
                "tags": [tag],
                "prompt": prompt,
                "completion": answer,
            }
        )
    return rows


def _new_prompt(draw: random.Random, *, tag: str, num_letters: int, seen: set[str]) -> str:
    while True:
        prompt = SIGNS[tag] + "".join(draw.choices(LETTERS, weights=FREQUENCIES, k=num_letters))
        if prompt not in seen:
            seen.add(prompt)
            return prompt


def _chat_row(row: dict[str, Any]) -> ChatRow:
    turns = (
        ChatMessage(role="user", content=row["prompt"]),
        ChatMessage(role="assistant", content=row["completion"]),
    )
    return ChatRow(messages=turns, id=row["id"], difficulty=row["difficulty"], tags=tuple(row["tags"]))


def _shifted(letter: str, *, by: int) -> str:
    return LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)]


def _renamed(dataset: TokenizedDataset, *, ids: NDArray[np.int64]) -> TokenizedDataset:
    return TokenizedDataset(
        tokens=ids[dataset.tokens].astype(np.uint32),
        is_answer=dataset.is_answer,
        starts=dataset.starts,
        row_numbers=dataset.row_numbers,
        num_rows=dataset.num_rows,
        num_dropped_rows=dataset.num_dropped_rows,
    )
