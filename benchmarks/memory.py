"""What `trainer/estimate.py` predicts beside what the trainer really needs, over a grid of small models.

Each point is a process of its own that trains three steps with the engine, on rows of equal length, while a
thread asks the kernel every two milliseconds how much anonymous memory is resident (RssAnon: pages of program
files come and go with what other programs do). What it had before the model was loaded is taken off, so that
the constant part cannot hide an error.

    python -m benchmarks.memory [--points 4]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from registry.model_shapes import read_shape
from trainer.config.adapter import AdapterConfig
from trainer.config.job import JobConfig, check_job
from trainer.core.batching import BatchPlan
from trainer.estimate import Arithmetic, TrainingMemory, TrainingMode, training_memory

MEGABYTE = 1e6
NUM_STEPS = 3
LOOK_SECONDS = 0.002
PROMPT_CHARACTERS = 8


class Point(BaseModel):
    """A model and a part of a batch, which is the whole batch unless a step is `split` in two.

    With `overlap` a checkpoint is copied and written beside each step but the first; `saves` writes one after
    each step. `prompt` characters come before the `length` that are learnt. `rank` is that of adapters.
    """

    hidden: int
    layers: int
    vocabulary: int
    rows: int
    length: int
    arithmetic: Arithmetic = "float32"
    checkpoints: bool = False
    split: bool = False
    overlap: bool = False
    saves: bool = False
    rank: int | None = None
    prompt: int = PROMPT_CHARACTERS

    @property
    def kind(self) -> str:
        """What else is done, in words."""
        saves = self.overlap or self.saves
        said = {"checkpointed": self.checkpoints, "split in two": self.split, "checkpoints": saves}
        said[f"{self.prompt} before"] = self.prompt != PROMPT_CHARACTERS
        said[f"LoRA of rank {self.rank}"] = self.rank is not None
        return ", ".join(word for word, is_so in said.items() if is_so)

    @property
    def adapter(self) -> AdapterConfig | None:
        """What learns in place of all weights."""
        return None if self.rank is None else AdapterConfig(rank=self.rank)


CHECKPOINTED: dict[str, Any] = {"checkpoints": True}
HALF: dict[str, Any] = {"arithmetic": "bfloat16"}
SPLIT: dict[str, Any] = {"split": True}
OVERLAPPED: dict[str, Any] = {"overlap": True}
PROMPTED: dict[str, Any] = {"prompt": 384}
# Short rows, so that merging asks for more than a step. In bfloat16: matrices that stay in float32 are pages
# of the model's file, which are not looked at.
ADAPTED: dict[str, Any] = {"arithmetic": "bfloat16", "rank": 8, "saves": True}
GRID = [
    Point(hidden=hidden, layers=layers, vocabulary=vocabulary, rows=rows, length=length, **mode)
    for hidden, layers, vocabulary, rows, length, mode in (
        (64, 2, 151_936, 4, 128, {}),
        (192, 3, 2_000, 4, 512, {}),
        (192, 3, 2_000, 4, 512, CHECKPOINTED),
        (320, 6, 20_000, 6, 128, {}),
        (128, 4, 151_936, 2, 128, CHECKPOINTED),
        (320, 6, 20_000, 6, 128, CHECKPOINTED),
        (192, 3, 2_000, 4, 512, HALF),
        (64, 2, 151_936, 4, 128, HALF),
        (192, 3, 2_000, 2, 128, {}),
        (320, 6, 20_000, 6, 128, {**HALF, **CHECKPOINTED}),
        (192, 3, 2_000, 4, 512, SPLIT),
        (64, 2, 151_936, 4, 128, SPLIT),
        (320, 6, 20_000, 6, 128, OVERLAPPED),
        (128, 4, 151_936, 2, 128, {**CHECKPOINTED, **OVERLAPPED}),
        (192, 3, 2_000, 4, 128, PROMPTED),
        (320, 6, 20_000, 2, 128, PROMPTED),
        (640, 8, 2_000, 1, 16, ADAPTED),
    )
]
WARM_UP = {"hidden": 64, "layers": 1, "vocabulary": 200, "rows": 1, "length": 16}


def main() -> None:
    """Print a line a point."""
    options = _options()
    if options.point:
        print(json.dumps(measure(Point.model_validate_json(options.point))))
        return
    points = (
        GRID if options.points is None else GRID[:: max(1, len(GRID) // options.points)][: options.points]
    )
    errors = []
    for point in points:
        found = run(point)
        errors.append(found["predicted_bytes"] / found["measured_bytes"] - 1)
        print(
            f"{point.hidden:4} wide, {point.layers} layers, vocabulary {point.vocabulary:6}, "
            f"{point.rows:2} x {point.length:4}, {point.arithmetic:8} "
            f"{point.kind:25}: "
            f"predicted {found['predicted_bytes'] / MEGABYTE:6.0f} MB, measured "
            f"{found['measured_bytes'] / MEGABYTE:6.0f} MB, {errors[-1]:+.1%}; before the model "
            f"{found['baseline_bytes'] / MEGABYTE:.0f} MB",
            flush=True,
        )
    within = sum(abs(error) <= 0.15 for error in errors)
    print(f"{within} of {len(errors)} within 15 %; from {min(errors):+.1%} to {max(errors):+.1%}")


def run(point: Point) -> dict[str, Any]:
    """Measure a point in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--point", point.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(point: Point) -> dict[str, int]:
    """Train in this process; predicted and measured bytes above what it had before the model."""
    with tempfile.TemporaryDirectory() as name:
        # What libraries load or set up at first use is no part of a step.
        small, _ = _material(Path(name) / "small", point=point.model_copy(update=WARM_UP))
        _train(small)
        job, memory = _material(Path(name) / "real", point=point)
        trim_heap()
        baseline = resident_bytes()
        with watched() as seen:
            _train(job)
        return {
            "predicted_bytes": memory.peak - memory.runtime,
            "measured_bytes": max(seen) - baseline,
            "baseline_bytes": baseline,
        }


def _train(job: JobConfig) -> None:
    from trainer.core.engine import TrainerEngine

    TrainerEngine(emit=lambda _: None).run_job(job)


def _material(directory: Path, *, point: Point) -> tuple[JobConfig, TrainingMemory]:
    build(directory / "model", point=point)
    row = {"prompt": "a" * point.prompt, "completion": "b" * point.length}
    rows_of_step = point.rows * (2 if point.split else 1)
    (directory / "rows.jsonl").write_text((json.dumps(row) + "\n") * rows_of_step * NUM_STEPS)
    length, num_answers = _lengths(directory)
    tokens_per_batch = rows_of_step * length
    # The trainer rounds lengths up before it fills a batch, so fewer rows may fit.
    lengths = np.full(rows_of_step * NUM_STEPS, length)
    plan = BatchPlan(lengths=lengths, tokens_per_batch=tokens_per_batch, num_epochs=1, seed=0)
    num_rows = min(point.rows, max(len(plan.batch(step)) for step in range(plan.num_steps)))
    memory = training_memory(
        read_shape(directory / "model"),
        num_tokens=num_rows * (length - 1),
        num_answers=num_rows * num_answers,
        mode=TrainingMode(
            device="cpu",
            arithmetic=point.arithmetic,
            checkpoints_gradients=point.checkpoints,
            is_split=point.split,
            copies_state=point.overlap,
            adapter=point.adapter,
        ),
    )
    return _job(directory, point=point, length=length, tokens_per_batch=tokens_per_batch), memory


def _job(directory: Path, *, point: Point, length: int, tokens_per_batch: int) -> JobConfig:
    checkpointing = "on" if point.checkpoints else "off"
    adapter = {} if point.adapter is None else {"adapter": point.adapter.model_dump(mode="json")}
    job = {
        "model": {"path": str(directory / "model"), "dtype": point.arithmetic},
        "data": {"path": str(directory / "rows.jsonl")},
        "output": {
            "checkpoints_dir": str(directory / "checkpoints"),
            "checkpoint_every_steps": 1 if point.overlap or point.saves else None,
            "overlap_writing": "on" if point.overlap else "off",
        },
        "hyperparameters": {"tokens_per_batch": tokens_per_batch, **adapter},
        "environment": {
            "device": "cpu",
            "gradient_checkpointing": checkpointing,
            # As after a step that ran out of memory.
            "max_part_tokens": point.rows * length if point.split else None,
        },
    }
    return check_job(job)


def build(directory: Path, *, point: Point) -> None:
    """An untrained Qwen3 of a point's sizes, with the tiny tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from inference.tiny import build_tiny_tokenizer

    config = Qwen3Config(
        vocab_size=point.vocabulary,
        hidden_size=point.hidden,
        intermediate_size=3 * point.hidden,
        num_hidden_layers=point.layers,
        num_attention_heads=point.hidden // 32,  # twice as wide as the model, as Qwen3-0.6B's are
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    build_tiny_tokenizer().save_pretrained(directory)


def _lengths(directory: Path) -> tuple[int, int]:
    from trainer.core.chat import ChatEncoder
    from trainer.core.data import tokenize_file
    from trainer.core.models import load_tokenizer

    encoder = ChatEncoder(load_tokenizer(directory / "model"))
    dataset = tokenize_file(directory / "rows.jsonl", encoder=encoder, max_length=4096, overlong="reject")
    return int(dataset.lengths[0]), int(dataset.is_answer.sum()) // dataset.num_sequences


@contextmanager
def watched() -> Iterator[list[int]]:
    """What was resident at each look, inside this block."""
    seen, done = [resident_bytes()], threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            seen.append(resident_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def trim_heap() -> None:
    """Give free pages of the C library's heap back: else the first tensors hide in what the warm-up left."""
    ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Anonymous memory of this process that is resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell anonymous memory")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted and measured memory of small models.")
    parser.add_argument("--points", type=int, help=f"of {len(GRID)}, evenly spread; all if left out")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
