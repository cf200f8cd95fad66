"""The loss of every step of a small run with several turns a row, as it was when it was last looked at."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.config.job import JobConfig
from trainer.core import loss as losses
from trainer.core.data import TokenizedDataset
from trainer.core.engine import TrainerEngine
from trainer.core.loss import Batch
from trainer.messages import ChildMessage, Progress

GOLDEN = (
    4.61726, 4.57259, 4.48114, 4.24834, 4.0222, 3.81764, 3.6142, 3.43629, 3.27232, 3.12226, 3.00404,
    2.90307, 2.82673, 2.75145, 2.69863, 2.63762, 2.60716, 2.55931, 2.55721, 2.53105, 2.53167,
)  # fmt: skip
# Another PyTorch or processor adds in another order; one token too few a batch moves the curve over twenty
# times further.
TOLERANCE = 1e-4


@pytest.fixture
def turns(write_rows: Callable[..., Path]) -> Path:
    """60 conversations of one to three turns; the answer is the word backward."""
    dice = random.Random(0)

    def conversation() -> dict[str, Any]:
        messages = []
        for _ in range(dice.randint(1, 3)):
            word = "".join(dice.choices(string.ascii_lowercase[:8], k=dice.randint(2, 7)))
            messages += [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]
        return {"messages": messages}

    return write_rows([conversation() for _ in range(60)], name="turns.jsonl")


def curve(
    engine: Callable[..., TrainerEngine],
    job: Callable[..., JobConfig],
    said: list[ChildMessage],
    turns: Path,
) -> list[float]:
    hyperparameters = {"learning_rate": 5e-3, "warmup_steps": 4, "tokens_per_batch": 600, "num_epochs": 3}
    engine().run_job(job(hyperparameters=hyperparameters, data={"path": str(turns)}))
    return [message.loss for message in said if isinstance(message, Progress)]


def test_the_loss_curve_is_the_golden_one(
    engine: Callable[..., TrainerEngine],
    job: Callable[..., JobConfig],
    said: list[ChildMessage],
    turns: Path,
) -> None:
    assert curve(engine, job, said, turns) == pytest.approx(GOLDEN, abs=TOLERANCE)


def test_a_run_that_forgets_one_answer_token_a_batch_leaves_the_golden_curve(
    engine: Callable[..., TrainerEngine],
    job: Callable[..., JobConfig],
    said: list[ChildMessage],
    turns: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = losses.collate

    def wrong(dataset: TokenizedDataset, **options: Any) -> Batch:
        batch = right(dataset, **options)
        return replace(
            batch,
            positions=batch.positions[:-1],
            targets=batch.targets[:-1],
            num_answers=batch.num_answers - 1,
        )

    monkeypatch.setattr(losses, "collate", wrong)
    off = [abs(found - golden) for found, golden in zip(curve(engine, job, said, turns), GOLDEN, strict=True)]
    assert max(off) > 20 * TOLERANCE
